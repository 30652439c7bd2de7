"""A file with a float side of 16 bits: what is written in it, what stays in float32 and why, and that it is right."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxq
from fxq.errors import ExportError, InputError
from fxq.export.channel_scales import move_channel_scales
from fxq.runtimes import get_runtime

F16, F32, BF16 = (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16)
BITS = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


class Small(nn.Module):
    """Convolutions of each kind, a skip, a norm and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.layer_norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.norm(self.first(x)))
        y = functional.silu(self.second(skip)) + skip
        return torch.softmax(self.fc(self.layer_norm(y.flatten(2).amax(-1))), -1)


@pytest.fixture(scope="module")
def small() -> torch.fx.GraphModule:
    torch.manual_seed(0)
    x = torch.randn(32, 3, 8, 8)
    return fxq.quantize(Small().eval(), [x], "tensorrt", x, progress=False, accuracy="plain")


def quantized(model: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    return fxq.quantize(model.eval(), [x], "tensorrt", x, progress=False, accuracy="plain")


def dtypes(path: Path) -> dict[str, int]:
    """Return the element type of each value and stored tensor."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return {**found, **{tensor.name: tensor.data_type for tensor in graph.initializer}}


@BITS
def test_all_that_is_float_is_in_the_dtype(small: torch.fx.GraphModule, tmp_path: Path, dtype: torch.dtype) -> None:
    report = fxq.export_onnx(small, tmp_path / "m.onnx", float_dtype=dtype)
    found = dtypes(report.path)
    wide = {name for name, number in found.items() if number == F32}
    assert list(report.in_float32) == ["softmax/Softmax"]
    assert len(wide) == 2  # what goes into the softmax, and comes out
    assert found["x"] == found["output"] == (F16 if dtype is torch.float16 else BF16)
    assert report.opset == (19 if dtype is torch.float16 else 22)
    assert report.float_dtype == str(dtype).removeprefix("torch.")
    # Eight bits of mantissa are as coarse as int8 is; eleven are not.
    lost = report.float32_quality.sqnr_db - report.quality.sqnr_db
    assert lost < (0.3 if dtype is torch.float16 else 3)


def test_inputs_and_outputs_may_stay_float32(small: torch.fx.GraphModule, tmp_path: Path) -> None:
    report = fxq.export_onnx(small, tmp_path / "m.onnx", float_dtype=torch.float16, keep_io_types=True)
    graph = onnx.load(report.path).graph
    assert [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)] == [F32, F32]
    assert [value.name for value in (*graph.input, *graph.output)] == ["x", "output"]
    (output,) = get_runtime("onnxruntime").run(report.path, torch.zeros(2, 3, 8, 8))
    assert output.dtype == np.float32


def test_codes_are_those_of_the_float32_file(small: torch.fx.GraphModule, tmp_path: Path) -> None:
    stored = []
    for dtype in (None, torch.float16):
        report = fxq.export_onnx(small, tmp_path / "m.onnx", float_dtype=dtype)
        assert (report.quantize_nodes, report.dequantize_nodes) == (3, 6)
        tensors = onnx.load(report.path).graph.initializer
        stored.append([tensor.raw_data for tensor in tensors if tensor.data_type == onnx.TensorProto.INT8])
    weights = [{data for data in found if len(data) > 8} for found in stored]  # the others are zero points
    assert len(weights[0]) == 3
    assert weights[0] == weights[1]


class Large(nn.Module):
    """Its convolution stands between values that float16 does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * 1e4) * 1e-5


def test_values_beyond_float16_on_the_samples_stay_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    converted = quantized(Large(), 30 * torch.randn(2, 2, 4, 4))
    report = fxq.export_onnx(converted, tmp_path / "m.onnx", float_dtype=torch.float16)
    why = report.in_float32
    assert "float16 ends at 6.55e+04" in why["mul/Mul"]
    assert why["second.weight/DequantizeLinear"] == "only nodes in float32 read it"
    assert not any(name.startswith("first") for name in why)
    assert report.float32_quality.sqnr_db - report.quality.sqnr_db < 0.3
    assert fxq.export_onnx(converted, tmp_path / "b.onnx", float_dtype=torch.bfloat16).in_float32 == {}


class Normalizes(nn.Module):
    """Divides by what is at least 1e-12, by both spellings, and adds a mask that ends at float32's lowest value."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        mask = torch.zeros(4)
        mask[1] = torch.finfo(torch.float32).min
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.normalize(x) + x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-12)
        return torch.softmax(self.fc(x) + self.mask, -1) * 100


def test_what_small_and_large_constants_meet_stays_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    report = fxq.export_onnx(quantized(Normalizes(), x), tmp_path / "m.onnx", float_dtype=torch.float16)
    (output,) = get_runtime("onnxruntime").run(report.path, torch.zeros(1, 4).half())
    assert np.isfinite(output).all()
    assert "precise from 6.1e-05" in " ".join(report.in_float32.values())
    assert "3.4e+38" in " ".join(report.in_float32.values())


def test_scales_behind_a_convolution_are_those_in_front(small: torch.fx.GraphModule, tmp_path: Path) -> None:
    path = fxq.export_onnx(small, tmp_path / "m.onnx").path
    model = ir.load(path)
    move_channel_scales(model)
    moved = tmp_path / "moved.onnx"
    ir.save(model, moved)
    onnx.checker.check_model(str(moved), full_check=True)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("BatchNormalization") == kinds.count("Conv") == 2
    assert all("axis" not in node.attributes for node in model.graph if "Conv" in str(node.outputs[0].uses()))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    runtime = get_runtime("onnxruntime", optimize=False)
    np.testing.assert_allclose(runtime.run(moved, x)[0], runtime.run(path, x)[0], atol=2e-3)  # of probabilities: a code


def test_scales_behind_a_matrix_product_are_those_in_front(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    converted = quantized(nn.Linear(8, 4), x)
    path = fxq.export_onnx(converted, tmp_path / "m.onnx").path
    model = ir.load(path)
    move_channel_scales(model)
    moved = tmp_path / "moved.onnx"
    ir.save(model, moved)
    assert [node.op_type for node in model.graph][-3:] == ["MatMul", "Mul", "Add"]
    runtime = get_runtime("onnxruntime", optimize=False)
    np.testing.assert_allclose(runtime.run(moved, x)[0], runtime.run(path, x)[0], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, "float16", torch.int8], ids=str)
def test_another_dtype_is_refused(small: torch.fx.GraphModule, tmp_path: Path, dtype: object) -> None:
    with pytest.raises(InputError, match="float_dtype must be"):
        fxq.export_onnx(small, tmp_path / "m.onnx", float_dtype=dtype)  # type: ignore[arg-type]


def test_a_model_in_half_precision_is_refused(tmp_path: Path) -> None:
    converted = quantized(nn.Sequential(nn.Linear(4, 4)).half(), torch.randn(2, 4).half())
    with pytest.raises(InputError, match="prepare model"):
        fxq.export_onnx(converted, tmp_path / "m.onnx", float_dtype=torch.bfloat16)


def test_an_opset_without_half_scales_is_refused(small: torch.fx.GraphModule, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="a float side of float16 needs 19"):
        fxq.export_onnx(small, tmp_path / "m.onnx", float_dtype=torch.float16, opset=18)
