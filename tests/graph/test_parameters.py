"""rw.set_weight and rw.set_bias: in place, checked, with the ranges that depend on them."""

from typing import Any

import pytest
import torch
from support.small import images, residual
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.record import Record
from fxq.state import find_state


@pytest.fixture
def gm() -> GraphModule:
    prepared = fxq.prepare(residual(), images(2))
    fxq.calibrate(prepared, [images(4)])
    return prepared


def rewriter(gm: GraphModule) -> fxq.Rewriter:
    state = find_state(gm)
    assert state is not None
    return fxq.Rewriter(gm, state.settings, Record(), "test")


def test_a_weight_keeps_its_identity_and_its_range_follows(gm: GraphModule) -> None:
    weight, quantizer = gm.conv2.weight, gm.conv2.weight_quantizer
    before, rw = quantizer.amax.clone(), rewriter(gm)
    rw.set_weight("conv2", 2 * weight.detach(), "twice as much")
    assert gm.conv2.weight is weight
    assert weight.requires_grad
    assert weight.grad_fn is None
    assert torch.equal(quantizer.amax, 2 * before)
    assert [str(entry) for entry in rw.record.entries] == ["test: conv2: weight: twice as much"]


def test_the_path_of_the_weight_itself_will_do(gm: GraphModule) -> None:
    rewriter(gm).set_weight("conv2.weight", torch.zeros_like(gm.conv2.weight), "gone")
    assert not gm.conv2.weight.any()


def test_keep_range_leaves_the_range(gm: GraphModule) -> None:
    before = gm.conv2.weight_quantizer.amax.clone()
    rewriter(gm).set_weight("conv2", 0.5 * gm.conv2.weight.detach(), "rounded", keep_range=True)
    assert torch.equal(gm.conv2.weight_quantizer.amax, before)


def test_a_fixed_range_stays() -> None:
    fixed = fxq.QConfig(weight=fxq.QuantDescriptor(amax=2.5))
    gm = fxq.prepare(residual(), images(2), fxq.recipe("tensorrt").with_rules(("fc", fixed)))
    rewriter(gm).set_weight("fc", 9 * gm.fc.weight.detach(), "larger")
    assert float(gm.fc.weight_quantizer.amax) == 2.5


def test_a_layer_without_bias_gets_one() -> None:
    torch.manual_seed(0)
    gm = fxq.prepare(nn.Sequential(nn.Linear(4, 3, bias=False)).eval(), torch.randn(2, 4))
    x = torch.randn(2, 4)
    layer, value = gm.get_submodule("0"), torch.tensor([1.0, 2.0, 3.0])
    with torch.no_grad():
        without = gm(x)
        rewriter(gm).set_bias("0", value, "a correction")
        torch.testing.assert_close(gm(x), without + value)
    assert isinstance(layer.bias, nn.Parameter)
    assert "0.bias" in gm.state_dict()
    value.zero_()
    assert layer.bias.any()  # a copy


def test_tied_weights_change_together_and_the_record_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    model[2].weight = model[0].weight
    gm = fxq.prepare(model, torch.randn(2, 4))
    rw = rewriter(gm)
    rw.set_weight("2", torch.full((4, 4), 3.0), "all alike")
    for path in ("0", "2"):
        layer: Any = gm.get_submodule(path)
        assert layer.weight is gm.get_submodule("0").weight
        assert layer.weight_quantizer.amax.flatten().tolist() == [3.0] * 4
    assert rw.record.entries[-1].text == "weight: all alike (tied: 0, 2)"


REFUSED: dict[str, tuple[str, Any, str]] = {
    "no such module": ("conv9", torch.ones(4), "no parameter 'conv9', and no module 'conv9' with a parameter 'weight'"),
    "no weight": ("dropped", torch.ones(4), "'dropped'"),
    "a quantizer": ("conv1_input_quantizer", torch.ones(()), "is a quantizer or its range: assign its amax or range"),
    "wrong shape": ("conv1", torch.ones(4), r"'conv1.weight' has shape \(4, 1, 3, 3\), the new value \(4,\)"),
    "wrong dtype": ("conv1", torch.ones(4, 1, 3, 3).half(), r"'conv1.weight' is torch.float32.*\.to\(torch.float32\)"),
    "NaN": ("conv1", torch.full((4, 1, 3, 3), float("nan")), "the new value of 'conv1.weight' holds NaN or infinity"),
    "infinity": ("conv1", torch.full((4, 1, 3, 3), float("inf")), "holds NaN or infinity"),
    "no tensor": ("conv1", 1.0, "'conv1.weight' takes a tensor, got float"),
}


@pytest.mark.parametrize(("path", "value", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_with_pass_and_path(gm: GraphModule, path: str, value: Any, words: str) -> None:
    before = {name: tensor.clone() for name, tensor in gm.state_dict().items()}
    with pytest.raises(fxq.PassError, match=f"pass 'test': .*{words}"):
        rewriter(gm).set_weight(path, value, "why not")
    assert all(torch.equal(before[name], tensor) for name, tensor in gm.state_dict().items())


def test_a_module_that_takes_no_bias_is_given_none() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_parameter("bias", None)

        def forward(self, x: Tensor) -> Tensor:
            return x

    recipe = fxq.recipe("tensorrt").replace(leaf_modules=("Scale",))
    gm = fxq.prepare(nn.Sequential(nn.Linear(4, 4), Scale()).eval(), torch.randn(2, 4), recipe)
    with pytest.raises(fxq.PassError, match=r"'1.bias' is None, and only a convolution or linear layer"):
        rewriter(gm).set_bias("1", torch.ones(4), "why not")
