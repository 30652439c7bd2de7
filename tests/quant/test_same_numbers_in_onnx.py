"""The functions compute what ONNX Runtime's QuantizeLinear and DequantizeLinear compute, in every format and dtype."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from fxq.quant.affine import fake_tensor_quant, symmetric_scale, tensor_quant
from fxq.quant.affine_range import affine_tensor_quant, fake_affine_tensor_quant
from fxq.quant.descriptor import LARGEST_E4M3, integer_bounds
from fxq.quant.float8 import fake_e4m3_quant
from fxq.runtimes import get_runtime

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FORMATS = [
    pytest.param(4, False, TensorProto.INT4, id="int4"),
    pytest.param(4, True, TensorProto.UINT4, id="uint4"),
    pytest.param(8, False, TensorProto.INT8, id="int8"),
    pytest.param(8, True, TensorProto.UINT8, id="uint8"),
    pytest.param(16, False, TensorProto.INT16, id="int16"),
    pytest.param(16, True, TensorProto.UINT16, id="uint16"),
]


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def through_onnx(x: Tensor, step: Tensor, code_type: int, zero_point: Tensor | None = None) -> Tensor:
    """Quantize and dequantize ``x`` along axis 0 in ONNX Runtime, in float32 whatever its dtype, as fxq does."""
    zeros = torch.zeros_like(step) if zero_point is None else zero_point
    constants = [
        helper.make_tensor("step", TensorProto.FLOAT, step.shape, step.flatten().tolist()),
        helper.make_tensor("zero", code_type, step.shape, [int(value) for value in zeros.flatten()]),
    ]
    attributes = {"axis": 0} if step.dim() else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["codes"], **attributes),
        helper.make_node("DequantizeLinear", ["codes", "step", "zero"], ["y"], **attributes),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "qdq", [ends[0]], [ends[1]], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "qdq.onnx"
        onnx.save(model, path)
        return torch.from_numpy(get_runtime("onnxruntime", threads=1).run(path, x.float())[0]).to(x.dtype)


def assert_same_but_on_ties(found: Tensor, expected: Tensor, x: Tensor, step: Tensor) -> None:
    # x * scale here and x / step there: within three float32 roundings of a tie either neighbour is right.
    quotient = x.double() / step.double()
    is_tie = (quotient - quotient.floor() - 0.5).abs() < 3 * 2.0**-24 * quotient.abs().clamp(min=1)
    assert is_tie.float().mean() < 0.02
    # hi / amax and amax / hi are each rounded, so that a code comes back within a last place.
    last_place = 2.0**-22 if x.dtype == torch.float32 else 2.0**-7
    torch.testing.assert_close(found[~is_tie], expected[~is_tie], rtol=last_place, atol=0)
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.01, atol=1.01 * float(step.max()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize(("bits", "unsigned", "code_type"), FORMATS)
def test_symmetric(bits: int, unsigned: bool, code_type: int, axis: int | None, dtype: torch.dtype) -> None:
    x = (data(8, 500) * torch.logspace(-2, 2, 8)[:, None]).to(dtype)
    x = x.abs() if unsigned else x
    amax = 0.8 * (x.float().abs().max() if axis is None else x.float().abs().amax(1, keepdim=True))
    step = symmetric_scale(amax, integer_bounds(bits, unsigned, False)[1])
    found = through_onnx(x, step.reshape(()) if axis is None else step.flatten(), code_type)
    assert_same_but_on_ties(fake_tensor_quant(x, amax, bits, unsigned, narrow_range=False), found, x, step)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("bits", "unsigned", "code_type"), FORMATS)
def test_affine_is_the_same_to_the_last_bit(bits: int, unsigned: bool, code_type: int, dtype: torch.dtype) -> None:
    x = (data(8, 500) * 2 + 1).to(dtype)
    low, high = x.float().amin(1, keepdim=True) * 0.7, x.float().amax(1, keepdim=True) * 0.7
    codes, step, zero_point = affine_tensor_quant(x, low, high, bits, unsigned)
    found = through_onnx(x, step.flatten(), code_type, zero_point.flatten())
    fake = fake_affine_tensor_quant(x, low, high, bits, unsigned)
    assert torch.equal(fake, found)
    if dtype == torch.float32:  # which holds every code
        assert torch.equal((codes - zero_point) * step, fake)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [None, 0])
def test_float8_e4m3(axis: int | None, dtype: torch.dtype) -> None:
    x = (data(8, 500) * torch.logspace(-2, 2, 8)[:, None]).to(dtype)
    amax = 0.8 * (x.float().abs().max() if axis is None else x.float().abs().amax(1, keepdim=True))
    step = symmetric_scale(amax, LARGEST_E4M3)
    found = through_onnx(x, step.reshape(()) if axis is None else step.flatten(), TensorProto.FLOAT8E4M3FN)
    quantized = fake_e4m3_quant(x, amax)
    # On a tie of the three mantissa bits x * scale and x / step may go to different neighbours: 1/8 apart.
    differs = (quantized.float() - found.float()).abs() > 2.0**-7 * found.float().abs() + 1e-30
    assert differs.float().mean() < 0.002
    torch.testing.assert_close(quantized.float(), found.float(), rtol=0.126, atol=float(step.max()) * 2.0**-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("bits", range(2, 17))
def test_every_number_of_bits_is_that_of_numpy(bits: int, unsigned: bool, dtype: torch.dtype) -> None:
    x = data(2000, seed=bits).to(dtype)
    x = x.abs() if unsigned else x
    hi = 2 ** (bits - 1 + unsigned) - 1
    for narrow in {False, not unsigned}:
        lo = 0 if unsigned else -hi if narrow else -hi - 1
        scale = np.float32(hi) / np.float32(1.7)
        codes = np.clip(np.rint(x.float().numpy() * scale), lo, hi)
        found, found_scale = tensor_quant(x.float(), 1.7, bits, unsigned, narrow)
        assert np.array_equal(found.numpy(), codes)
        assert found_scale.numpy() == scale
        fake = fake_tensor_quant(x, 1.7, bits, unsigned, narrow)
        assert torch.equal(fake, torch.from_numpy(codes / scale).to(dtype))


@pytest.mark.parametrize("amax", [0.0, 2.0**-24])
def test_values_inside_of_a_range_too_small_to_divide_by_are_zero_in_both(amax: float) -> None:
    # Values far outside of it are zero here; ONNX, with step 1, rounds them to integers.
    x = torch.tensor([-amax, 0.0, amax / 2, amax])
    step = symmetric_scale(torch.tensor(amax), 127)
    assert not fake_tensor_quant(x, amax, narrow_range=False).any()
    assert not through_onnx(x, step, TensorProto.INT8).any()
