"""What several translations into ONNX write. Imports the ONNX libraries, so that only translations import it."""

import math
from typing import Any

import onnx
import onnx_ir as ir

from fxq.quant.descriptor import LARGEST_E4M3

FLOAT = ir.DataType.FLOAT
INT4 = ir.DataType.INT4


def cast(op: Any, value: Any, dtype: int) -> Any:
    """Return ``value`` in ``dtype``, a number of ONNX; itself where it is."""
    return value if value.dtype == ir.DataType(dtype) else op.Cast(value, to=ir.DataType(dtype))


def axis_of(axis: int | None) -> dict[str, int]:
    """Return the attribute, none per tensor."""
    return {} if axis is None else {"axis": axis}


def direction_of(directions: int) -> str:
    """Return what ONNX calls one or two directions."""
    return "bidirectional" if directions == 2 else "forward"


def zeros_like(op: Any, steps: Any) -> Any:
    """Return int8 zeros of the shape of ``steps``."""
    shape = list(steps.shape)
    zeros = bytes(math.prod(shape))
    return op.Constant(value=onnx.helper.make_tensor("", onnx.TensorProto.INT8, shape, zeros, raw=True))


def clip_to_codes(op: Any, x: Any, params: tuple[Any, Any, int | None], bounds: tuple[int, int], dtype: int) -> Any:
    """Clip ``x`` to the values of the outermost codes, where ``dtype`` holds more; folded into constants later."""
    if bounds == _dtype_bounds(ir.DataType(dtype)):
        return x
    scale, zero_point, axis = params
    zero = op.Cast(zero_point, to=x.dtype)
    ends = [op.Mul(op.Sub(op.Constant(value=_scalar(end, x.dtype)), zero), scale) for end in bounds]
    if axis is None:
        return op.Clip(x, *ends)
    # Clip takes scalars; one bound per channel is spread over the dimensions behind the channel's.
    behind = list(range(1, len(x.shape) - axis % len(x.shape)))
    if behind:
        ends = [op.Unsqueeze(end, op.Constant(value_ints=behind)) for end in ends]
    return op.Max(op.Min(x, ends[1]), ends[0])


def _scalar(value: int, dtype: ir.DataType) -> onnx.TensorProto:
    return ir.to_proto(ir.tensor(float(value), dtype=dtype))


def _dtype_bounds(dtype: ir.DataType) -> tuple[int, int]:
    if dtype == ir.DataType.FLOAT8E4M3FN:
        return -LARGEST_E4M3, LARGEST_E4M3
    bits, is_signed = dtype.bitwidth, dtype.is_signed()
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
