"""fxq::quantize and fxq::dequantize compute what ONNX Runtime's QuantizeLinear and DequantizeLinear compute."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from fxq.quant import DEQUANTIZE, QUANTIZE
from fxq.runtimes import get_runtime

ONNX_DTYPES = {
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.int16: TensorProto.INT16,
    torch.uint16: TensorProto.UINT16,
}


def onnxruntime_codes(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    attributes = {} if axis is None else {"axis": axis}
    dtype = ONNX_DTYPES[zero_point.dtype]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, scale.shape),
        helper.make_tensor_value_info("z", dtype, zero_point.shape),
    ]
    outputs = [helper.make_tensor_value_info(n, t, x.shape) for n, t in (("q", dtype), ("y", TensorProto.FLOAT))]
    model = helper.make_model(
        helper.make_graph(nodes, "qdq", inputs, outputs), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "qdq.onnx"
        onnx.save(model, path)
        codes, values = get_runtime("onnxruntime", threads=1).run(path, (x, scale, zero_point))
    return codes, values


@pytest.mark.parametrize("axis", [None, 0, 1], ids=["per-tensor", "axis-0", "axis-1"])
@pytest.mark.parametrize("dtype", list(ONNX_DTYPES), ids=str)
def test_codes_and_values_equal_onnxruntimes(dtype: torch.dtype, axis: int | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5, 4) * 4
    shape = () if axis is None else (x.shape[axis],)
    info = torch.iinfo(dtype)
    scale = torch.rand(shape) / (info.max - info.min) * 10 + 1e-6
    zero_point = torch.zeros(shape).add_(3 if info.min < 0 else info.max // 2).to(dtype)

    q = QUANTIZE(x, scale, zero_point, axis, info.min, info.max, dtype)
    y = DEQUANTIZE(q, scale, zero_point, axis, torch.float32)

    codes, values = onnxruntime_codes(x, scale, zero_point, axis)
    assert q.dtype is dtype
    np.testing.assert_array_equal(q.numpy(), codes)
    np.testing.assert_array_equal(y.numpy(), values)


def test_ties_round_to_the_even_code() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    q = QUANTIZE(x, torch.tensor(1.0), torch.tensor(0, dtype=torch.int8), None, -128, 127, torch.int8)
    assert q.tolist() == [0, 2, 2, 0, -2]


def test_a_range_narrower_than_the_dtype_is_clamped() -> None:
    x = torch.tensor([-100.0, -1.0, 100.0])
    q = QUANTIZE(x, torch.tensor(1.0), torch.tensor(0, dtype=torch.int8), None, -8, 7, torch.int8)
    assert q.tolist() == [-8, -1, 7]


def test_int32_bias_codes_dequantize_per_channel() -> None:
    codes, scale = torch.tensor([100_000, -3], dtype=torch.int32), torch.tensor([1e-4, 0.5])
    y = DEQUANTIZE(codes, scale, torch.zeros(2, dtype=torch.int32), 0, torch.float32)
    torch.testing.assert_close(y, torch.tensor([10.0, -1.5]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, scale, zero_point = torch.randn(64).to(dtype), torch.tensor(0.0123), torch.tensor(0, dtype=torch.int8)
    q = QUANTIZE(x, scale, zero_point, None, -128, 127, torch.int8)
    assert torch.equal(q, QUANTIZE(x.float(), scale, zero_point, None, -128, 127, torch.int8))
    y = DEQUANTIZE(q, scale, zero_point, None, dtype)
    assert torch.equal(y, (q.float() * 0.0123).to(dtype))


def test_inputs_are_not_modified() -> None:
    q = torch.tensor([1, 2], dtype=torch.int8)
    x, scale, zero_point = torch.tensor([0.3, -0.2]), torch.tensor(0.1), torch.tensor(0, dtype=torch.int8)
    QUANTIZE(x, scale, zero_point, None, -128, 127, torch.int8)
    DEQUANTIZE(q, scale, zero_point, None, torch.float32)
    assert x.tolist() == pytest.approx([0.3, -0.2])
    assert q.tolist() == [1, 2]


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch")
def test_the_operators_pass_torchs_own_checks() -> None:
    x, scale = torch.randn(2, 3, 4), torch.tensor([0.1, 0.2, 0.3])
    zero_point = torch.zeros(3, dtype=torch.int8)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(QUANTIZE, (x, scale, zero_point, 1, -128, 127, torch.int8), test_utils=tests)
    q = QUANTIZE(x, scale, zero_point, 1, -128, 127, torch.int8)
    torch.library.opcheck(DEQUANTIZE, (q, scale, zero_point, 1, torch.float32), test_utils=tests)
