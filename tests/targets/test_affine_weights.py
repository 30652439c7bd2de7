"""Unsigned and affine weights: their zero points go through lowering and export, and ONNX Runtime fuses them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq import QConfig, QuantDescriptor
from fxq.runtimes import count_kinds, get_runtime

X = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
UINT8 = QuantDescriptor(unsigned=True, symmetric=False)


class Net(nn.Module):
    """A convolution of each kind, and a linear layer; biased weights, so that zero points differ from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.fc = nn.Linear(4, 10)
        with torch.no_grad():
            for layer in (self.conv, self.up, self.fc):
                layer.weight.add_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.up(self.conv(x).relu()).mean((2, 3)))


@pytest.mark.parametrize(
    "weight",
    [UINT8, UINT8.replace(axis=0), QuantDescriptor(symmetric=False)],
    ids=["uint8 per tensor", "uint8 per channel", "int8 affine"],
)
def test_they_run_as_integers_with_the_numbers_of_the_converted_model(tmp_path: Path, weight: QuantDescriptor) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    recipe = fxq.recipe("onnxruntime").replace(default=QConfig(weight=weight))
    converted = fxq.quantize(model, [X], recipe, progress=False)
    zero_points = [value for name, value in converted.named_buffers() if name.endswith("weight_zero_point")]
    assert len(zero_points) == 3
    assert all(bool((value != 0).any()) for value in zero_points)
    report = fxq.export_onnx(converted, tmp_path / "model.onnx", X)
    assert report.parity[0].max_lsb <= 1  # a value between two codes may be rounded either way
    kinds = count_kinds(get_runtime("onnxruntime").executed_ops(tmp_path / "model.onnx"))
    assert kinds["QLinearConv"] == 1
    assert kinds["QGemm"] == 1
    # 8 bits of activations and weights each: what is lost is about a step of both.
    torch.testing.assert_close(converted(X), model(X), rtol=0.05, atol=0.02)


def test_a_target_of_symmetric_weights_refuses_them() -> None:
    recipe = fxq.recipe("openvino").replace(default=QConfig(weight=UINT8))
    with pytest.raises(fxq.TargetError, match="target 'openvino' takes signed symmetric weights only"):
        fxq.prepare(Net().eval(), X, recipe)
