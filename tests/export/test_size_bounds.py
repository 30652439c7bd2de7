"""Bounds of open sizes: the file holds what ``dynamic_shapes`` says of them, and ``fxq.verify`` asks for no more."""

import json
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from support.qdq_files import QdqFile
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

import fxq
from fxq.errors import OnnxFileError
from fxq.export.size_bounds import stored_sizes
from fxq.verification.shapes import read_profile, with_stored_sizes


class Mixer(nn.Module):
    """Two inputs with the same samples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor, scale: Tensor) -> Tensor:
        return self.conv(image).relu() * scale


@pytest.fixture(scope="module")
def converted() -> GraphModule:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8), torch.rand(4, 4, 1, 1)
    return fxq.quantize(Mixer().eval(), [images], "tensorrt", images, progress=False)


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_bounds_are_in_the_file_and_tensorrt_compiles_it_for_them(converted: GraphModule, tmp_path: Path) -> None:
    batch, width = Dim("batch", min=1, max=32), Dim("width", min=1, max=9)
    shapes = {"image": {0: batch, 3: 8 * width}, "scale": {0: batch}}
    path = fxq.export_onnx(converted, tmp_path / "model.onnx", dynamic_shapes=shapes).path
    assert json.loads(metadata(path)["fxq.sizes"]) == {"batch": [1, 4, 32], "8*width": [8, 8, 72]}
    again = fxq.export_onnx(converted, tmp_path / "again.onnx", dynamic_shapes=shapes).path
    assert again.read_bytes() == path.read_bytes()
    report = fxq.verify(path, "tensorrt")
    assert report.executed
    assert report.ok
    profile = with_stored_sizes(ir.load(path), {})
    assert profile == {
        "image": ((1, 3, 8, 8), (4, 3, 8, 8), (32, 3, 8, 72)),
        "scale": ((1, 4, 1, 1), (4, 4, 1, 1), (32, 4, 1, 1)),
    }


def test_sizes_without_an_upper_bound_are_still_asked_for(converted: GraphModule, tmp_path: Path) -> None:
    batch = Dim("batch", max=32)
    path = fxq.export_onnx(
        converted,
        tmp_path / "model.onnx",
        dynamic_shapes={"image": {0: batch, 3: "width"}, "scale": {0: batch}},
    ).path
    assert json.loads(metadata(path)["fxq.sizes"]) == {"batch": [1, 4, 32]}
    with pytest.raises(OnnxFileError, match=r"input 'image' .*has open sizes, \(batch, 3, 8, width\)"):
        fxq.verify(path, "tensorrt")
    path = fxq.export_onnx(converted, tmp_path / "open.onnx").path
    assert "fxq.sizes" not in metadata(path)


@pytest.fixture
def open_inputs(tmp_path: Path) -> ir.Model:
    """A file with the inputs x, y and z, of one batch, and one of a fixed size."""
    file = QdqFile(shape=("batch", 4, 8, 8))
    file.save(tmp_path / "model.onnx", file.conv(file.qdq("x", "a"), "conv"))
    model = ir.load(tmp_path / "model.onnx")
    second = ir.Value(name="y", shape=ir.Shape(["batch", None]), type=ir.TensorType(ir.DataType.FLOAT))
    third = ir.Value(name="z", shape=ir.Shape(["batch", 2]), type=ir.TensorType(ir.DataType.FLOAT))
    fixed = ir.Value(name="fixed", shape=ir.Shape([3]), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.extend([second, third, fixed])
    model.metadata_props["fxq.sizes"] = '{"batch": [1, 2, 8]}'
    return model


def test_a_shape_that_is_given_goes_before_what_is_stored_for_sizes_of_its_name(open_inputs: ir.Model) -> None:
    given = read_profile(Path("model.onnx"), open_inputs, {"x": "4x4x8x8"})
    assert with_stored_sizes(open_inputs, {}) == {
        "x": ((1, 4, 8, 8), (2, 4, 8, 8), (8, 4, 8, 8)),
        "z": ((1, 2), (2, 2), (8, 2)),
    }
    assert with_stored_sizes(open_inputs, given) == {"x": ((4, 4, 8, 8),) * 3, "z": ((4, 2),) * 3}
    given = read_profile(Path("model.onnx"), open_inputs, {"x": "4x4x8x8", "z": "2x2"})
    assert with_stored_sizes(open_inputs, given) == given


@pytest.mark.parametrize(
    "stored",
    ["", "{", "[]", '{"batch": 8}', '{"batch": [1, 8]}', '{"batch": [2, 1, 8]}', '{"batch": [0, 1, 8]}',
     '{"batch": [1, 2, "8"]}', '{"batch": [true, true, true]}', "[" * 100_000, '{"batch": [1, 2, 2147483648]}'],
    ids=["empty", "no JSON", "a list", "a number", "two", "falling", "zero", "text", "truth", "deep", "too large"],
)  # fmt: skip
def test_what_is_no_range_is_left_out(open_inputs: ir.Model, stored: Any) -> None:
    open_inputs.metadata_props["fxq.sizes"] = stored
    assert stored_sizes(open_inputs) == {}
    assert with_stored_sizes(open_inputs, {}) == {}
