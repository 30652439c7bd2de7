import time
import warnings

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.fx import GraphModule

from fxq.graph.trace import trace

QUICK = {
    "resnet18": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
}
SLOW = {
    "convnext_tiny": 64,
    "vit_b_16": 224,
    "swin_t": 224,
    "swin_v2_t": 256,
    "maxvit_t": 224,
    "googlenet": 64,
    "inception_v3": 128,
    "densenet121": 64,
    "regnet_y_400mf": 64,
    "mnasnet0_5": 64,
}
TIMM = (
    "resnet18",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mobilevitv2_050",
    "levit_128s",
    "ghostnet_100",
    "repvgg_a0",
    "mixnet_s",
    "coat_lite_tiny",
    "edgenext_xx_small",
    "maxvit_nano_rw_256",
    "xcit_nano_12_p16_224",
    "tiny_vit_5m_224",
    "efficientformer_l1",
    "nfnet_f0",
    "eca_nfnet_l0",
    "poolformer_s12",
    "mixer_s16_224",
)


def torchvision_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about the initialisation of googlenet and inception
        return torchvision.models.get_model(name, weights=None, **options).eval()


def assert_traces(model: nn.Module, example: Tensor) -> GraphModule:
    traced = trace(model, (example,))
    batch = torch.cat([example, example.flip(-1)])  # another batch size than the one it was traced with
    with torch.no_grad():
        # The same kernels run in the same order, so that not one bit may differ.
        torch.testing.assert_close(traced(batch), model(batch), rtol=0, atol=0)
    assert [node.name for node in traced.graph.nodes if "val" not in node.meta] == []
    return traced


def image(size: int) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", QUICK)
def test_small_torchvision_models_compute_the_same_bits(name: str) -> None:
    assert_traces(torchvision_model(name), image(QUICK[name]))


@pytest.mark.parametrize("name", ["levit_128s", "lcnet_035"])
def test_small_timm_models_compute_the_same_bits(name: str) -> None:
    torch.manual_seed(0)
    assert_traces(timm.create_model(name, pretrained=False).eval(), image(224))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_torchvision_models_compute_the_same_bits(name: str) -> None:
    assert_traces(torchvision_model(name), image(SLOW[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm_models_compute_the_same_bits(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    assert_traces(model, image(model.default_cfg["input_size"][-1]))


def test_a_resnet50_is_traced_within_two_seconds() -> None:
    model = torchvision_model("resnet50")
    start = time.process_time()  # not the clock on the wall: other jobs may share the machine
    trace(model, (image(224),))
    assert time.process_time() - start < 2.0  # 0.3 s on a free machine
