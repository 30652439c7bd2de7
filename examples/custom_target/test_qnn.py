"""The target's own test: what a target's author writes. Each rule is looked for in the exported file."""

from pathlib import Path

import onnx
import pytest
import torch
from fxq_qnn import TARGET
from onnx import numpy_helper
from torch import Tensor, nn

import fxq

X = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Gated(nn.Module):
    """A convolution whose output is gated by a squeeze of itself; its head ends in tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(8 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return four numbers in (-1, 1) for each image."""
        x = self.conv(x).relu()
        x = self.pool(x * torch.sigmoid(self.gate(x)))
        return torch.tanh(self.head(x.flatten(1)))


class File:
    """An exported file, with its quantizers by the tensors that they read or make."""

    def __init__(self, path: Path) -> None:
        self.model = onnx.load(path)
        self.stored = {item.name: numpy_helper.to_array(item) for item in self.model.graph.initializer}

    def nodes(self, op_type: str) -> list[onnx.NodeProto]:
        """Return the nodes of a kind."""
        return [node for node in self.model.graph.node if node.op_type == op_type]

    def read_by(self, op_type: str, index: int = 0) -> onnx.NodeProto:
        """Return the DequantizeLinear in front of the only node of a kind."""
        (node,) = self.nodes(op_type)
        return next(found for found in self.nodes("DequantizeLinear") if found.output[0] == node.input[index])

    def made_by(self, op_type: str) -> onnx.NodeProto:
        """Return the QuantizeLinear behind the only node of a kind."""
        (node,) = self.nodes(op_type)
        return next(found for found in self.nodes("QuantizeLinear") if found.input[0] == node.output[0])

    def step_and_zero_point(self, quantizer: onnx.NodeProto) -> tuple[float, int]:
        """Return a quantizer's step and zero point."""
        return float(self.stored[quantizer.input[1]]), int(self.stored[quantizer.input[2]])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> File:
    torch.manual_seed(0)
    converted = fxq.quantize(Gated().eval(), [X], fxq.Recipe(target=TARGET), progress=False)
    path = tmp_path_factory.mktemp("qnn") / "model.onnx"
    report = fxq.export_onnx(converted, path, X)  # checks the target's file rules, and the numbers in ONNX Runtime
    assert report.parity[0].max_lsb <= 1  # a value between two codes may be rounded either way
    return File(path)


def test_activations_are_uint16_weights_uint8_and_biases_int32(file: File) -> None:
    assert {str(file.stored[node.input[2]].dtype) for node in file.nodes("QuantizeLinear")} == {"uint16"}
    stored = [node for node in file.nodes("DequantizeLinear") if node.input[0] in file.stored]
    assert {str(file.stored[node.input[0]].dtype) for node in stored} == {"uint8", "int32"}
    assert file.model.opset_import[0].version >= 21


def test_every_operation_reads_and_makes_integers(file: File) -> None:
    made = {output: node.op_type for node in file.model.graph.node for output in node.output}
    read = {name: node.op_type for node in file.model.graph.node for name in node.input}
    for node in file.model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Relu"):
            assert {made.get(name) for name in node.input if name not in file.stored} == {"DequantizeLinear"}
            assert read[node.output[0]] in ("QuantizeLinear", "Relu")
    assert {read[node.output[0]] for node in file.nodes("Relu")} == {"QuantizeLinear"}


def test_sigmoid_and_tanh_have_the_ranges_that_the_backend_fixes(file: File) -> None:
    assert file.step_and_zero_point(file.made_by("Sigmoid")) == (pytest.approx(1 / 65536, rel=1e-6), 0)
    assert file.step_and_zero_point(file.made_by("Tanh")) == (pytest.approx(1 / 32768, rel=1e-6), 32768)


def test_pooling_keeps_the_scale_of_its_input(file: File) -> None:
    before, after = file.read_by("MaxPool"), file.made_by("MaxPool")
    assert file.step_and_zero_point(before) == file.step_and_zero_point(after)


def test_the_target_comes_back_from_text_and_so_does_a_recipe_with_it() -> None:
    assert fxq.Target.from_toml(TARGET.to_toml()) == TARGET
    recipe = fxq.Recipe(target=TARGET)
    assert fxq.Recipe.from_toml(recipe.to_toml()) == recipe


def test_explain_speaks_of_the_target() -> None:
    explained = fxq.explain(fxq.prepare(Gated().eval(), X, fxq.Recipe(target=TARGET)))
    assert explained["relu"].reason == "qnn computes it in the epilogue of the operation before it"
    assert explained["head"].quantized[0].descriptor == "uint16 affine per tensor"
