"""Quantized versions of modules of one's own, as the documentation shows them, from torch to ONNX."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq.errors import InputError
from fxq.nn import OnlyInputQuantized, TensorQuantizer, WeightQuantized


class QuantLPPool2d(OnlyInputQuantized, nn.LPPool2d):
    """Its input is quantized; the rest is nn.LPPool2d's."""


class GainLinear(nn.Linear):
    """A layer of the user's, in float."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.gain = nn.Parameter(torch.full((out_features,), 2.0))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias) * self.gain


class QuantGainLinear(WeightQuantized, GainLinear):
    """Its input and its weight are quantized, its gain is not."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self.input_quantizer(input), self.quantized_weight(), self.bias) * self.gain


class Similarity(nn.Module):
    """Quantizers anywhere in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.left = TensorQuantizer(fxq.QuantDescriptor(num_bits=8))
        self.right = TensorQuantizer(fxq.QuantDescriptor(num_bits=8))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(self.left(a), self.right(b).transpose(-2, -1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pool, self.linear = QuantLPPool2d(2, 2), QuantGainLinear(16, 8)
        self.similarity, self.head = Similarity(), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(self.pool(x).flatten(2))
        return self.head(self.similarity(y, y * 0.5))


X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
BY_HAND = ["pool._input", "linear._input", "linear._weight", "similarity.left", "similarity.right"]


def fake(x: Tensor, axis: int | None = None) -> Tensor:
    return TensorQuantizer(fxq.QuantDescriptor(axis=axis))(x)


def test_each_computes_its_formula() -> None:
    net = Net().eval()
    x, y = X, torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2))
    assert torch.equal(net.pool(x), F.lp_pool2d(fake(x), 2.0, 2))
    linear = net.linear
    assert torch.equal(linear(y), F.linear(fake(y), fake(linear.weight, 0), linear.bias) * linear.gain)
    assert torch.equal(net.similarity(y, 2 * y), fake(y) @ fake(2 * y).transpose(-2, -1))


def test_a_float_module_of_ones_own_is_taken_over() -> None:
    original = GainLinear(16, 8)
    module = QuantGainLinear.from_float(original, input=fxq.QuantDescriptor(num_bits=4))
    assert isinstance(module, GainLinear)
    assert module.gain is original.gain
    assert module.input_quantizer.num_bits == 4
    assert QuantGainLinear.replaced_type() is GainLinear
    with pytest.raises(InputError, match="exactly GainLinear, got Linear"):
        QuantGainLinear.from_float(nn.Linear(16, 8))


def test_ranges_are_calibrated_by_hand_too() -> None:
    module = QuantGainLinear(16, 8)
    y = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    fxq.calibrate_weights(module)
    module.input_quantizer.enable_calib()
    module(y)
    module.input_quantizer.load_calib_amax()
    assert float(module.input_quantizer.amax) == float(y.abs().max())
    assert torch.equal(module.weight_quantizer.amax.flatten(), module.weight.abs().amax(1))


@pytest.mark.parametrize("recipe", ["tensorrt", "onnxruntime"])
def test_prepare_respects_them_and_the_whole_goes_to_onnx(recipe: str, tmp_path: Path) -> None:
    net = Net().eval()
    prepared = fxq.prepare(net, X, recipe)
    calls = [str(node.target) for node in prepared.graph.nodes if node.op == "call_module"]
    assert [path for path in calls if path.removesuffix("_quantizer") in BY_HAND] == [
        "pool._input_quantizer",
        "linear._input_quantizer",
        "linear._weight_quantizer",
        "similarity.left",
        "similarity.right",
    ]
    own = {path: module for path, module in prepared.named_modules() if isinstance(module, TensorQuantizer)}
    expected: dict[str, Any] = {"linear._weight_quantizer": 0}
    assert all(own[path].axis == expected.get(path) for path in own if path in calls and "head" not in path)
    fxq.calibrate(prepared, [X], progress=False)
    converted = fxq.convert(prepared)
    with torch.no_grad():
        # The same codes; the order of sums differs, and on ONNX Runtime biases are rounded to their int32 steps.
        torch.testing.assert_close(converted(X), prepared(X), atol=5e-5, rtol=1e-5)
    path = fxq.export_onnx(converted, tmp_path / "own.onnx").path  # ONNX Runtime agrees, or this raises
    graph = onnx.load(path).graph
    assert {item.data_type for item in graph.initializer if "weight" in item.name and len(item.dims) == 2} == {
        onnx.TensorProto.INT8
    }
