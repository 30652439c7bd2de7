"""Unedited models of torchvision and timm through the whole compiler, for both targets.

Each is exported with the checks on: valid ONNX, the target's rules, and ONNX Runtime computes what the converted module
computes. Random weights: accuracy is no matter here, and a deep random network amplifies quantization noise until
little is left of its output, so only the small ones are compared with the float model.
"""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from support.models import random_images, with_batch_statistics
from torch import Tensor, nn

import fxq

# What fxq rightly says of untrained models: some of their layers fade to zero, and little is left of deep ones.
pytestmark = [
    pytest.mark.filterwarnings("ignore:(the converted model|the file in ONNX Runtime) is far:UserWarning"),
    pytest.mark.filterwarnings("ignore:the file in ONNX Runtime is worse:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* got a single value from all of the data:UserWarning"),
]
TARGETS = ("tensorrt", "onnxruntime")
# name -> image size
SMALL = {"torchvision/squeezenet1_1": 64}
SMALL_SAMPLE = {"timm/convnext_atto": 64, "timm/vit_tiny_patch16_224": 64}
SAMPLE = {"torchvision/shufflenet_v2_x0_5": 64, "torchvision/efficientnet_b0": 64, "timm/resnet26d": 64}
REST = {
    "torchvision/mobilenet_v3_small": 64,
    "torchvision/densenet121": 64,
    "torchvision/googlenet": 128,
    "torchvision/regnet_y_400mf": 64,
    "torchvision/mnasnet0_5": 64,
    "torchvision/vgg11_bn": 64,
    "torchvision/resnext50_32x4d": 64,
    "timm/repvgg_a0": 64,
    "timm/ghostnet_100": 64,
    "timm/seresnet18": 64,
    "timm/mixer_s32_224": 224,
    "timm/resnetv2_50": 64,
}
# dB between the float and the converted model: 8 bits give each tensor about 40, of which the depth takes its part. The
# untrained class token of a ViT is almost 0, so on the quantized residual stream of ONNX Runtime it has few codes.
SMALL_DB = {"torchvision/squeezenet1_1": 30, "timm/convnext_atto": 20, "timm/vit_tiny_patch16_224": 8}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SMALL)
def test_a_small_model_keeps_its_outputs(name: str, target: str, tmp_path: Path) -> None:
    _check_outputs(name, SMALL[name], target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SMALL_SAMPLE)
def test_a_sample_of_small_models_keep_their_outputs(name: str, target: str, tmp_path: Path) -> None:
    _check_outputs(name, SMALL_SAMPLE[name], target, tmp_path)


def _check_outputs(name: str, size: int, target: str, tmp_path: Path) -> None:
    model, images = zoo_model(name, size)
    converted = through_the_compiler(model, images, target, tmp_path)
    with torch.no_grad():
        expected, found = model(images), converted(images)
    assert sqnr_db(expected, found) > SMALL_DB[name]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_the_zoo_compiles(name: str, target: str, tmp_path: Path) -> None:
    model, images = zoo_model(name, SAMPLE[name])
    converted = through_the_compiler(model, images, target, tmp_path)
    assert converted(images).shape == model(images).shape


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", REST)
def test_the_rest_of_the_zoo_compiles(name: str, target: str, tmp_path: Path) -> None:
    model, images = zoo_model(name, REST[name])
    converted = through_the_compiler(model, images, target, tmp_path)
    assert converted(images).shape == model(images).shape


def zoo_model(name: str, size: int) -> tuple[nn.Module, Tensor]:
    library, _, architecture = name.partition("/")
    torch.manual_seed(0)
    images = random_images(4, size)
    if library == "torchvision":
        # googlenet warns that its old way of drawing weights takes long, unless told to
        options = {"init_weights": True} if architecture == "googlenet" else {}
        model = torchvision.models.get_model(architecture, weights=None, **options)
    else:
        options = {"img_size": size} if "vit" in architecture or "mixer" in architecture else {}
        model = timm.create_model(architecture, pretrained=False, **options)
    return with_batch_statistics(model, images), images


def through_the_compiler(model: nn.Module, images: Tensor, target: str, folder: Path) -> torch.fx.GraphModule:
    converted = fxq.quantize(model, [images], target, images[:1], progress=False)
    report = fxq.export_onnx(converted, folder / "model.onnx")
    assert report.quantize_nodes > 0
    return converted


def sqnr_db(expected: Tensor, found: Tensor) -> float:
    return float(20 * torch.log10(expected.norm() / (expected - found).norm()))
