"""The two operators of a lowered graph: ``fxq::quantize`` and ``fxq::dequantize``.

``quantize:   q  = clamp(round(x / scale) + zero_point, quant_min, quant_max)``, rounding half to even, in float32
``dequantize: x' = (q - zero_point) * scale``, in float32, then cast to ``out_dtype``
float8 e4m3 codes are floats: ``q = e4m3(clamp(x / scale, quant_min, quant_max))``, with zero point 0

``scale`` is the step as ONNX counts it (amax / hi). They are custom operators, so that tracing and exporting keep
each of them as one node whatever they compute inside. They have no gradient: a lowered graph is for inference.

In ONNX, QuantizeLinear saturates at the ends of its dtype only. Codes that use less of it (4 bits in an int8) get a
Clip in front, at the values of the outermost codes, so that every runtime computes the same.

Importing this module registers them. Source: ONNX QuantizeLinear and DequantizeLinear.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxq.quant.ops.lowered_op import LoweredOp

CODE_DTYPES = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.float8_e4m3fn)


@torch.library.custom_op(
    "fxq::quantize",
    mutates_args=(),
    schema="(Tensor x, Tensor scale, Tensor zero_point, int? axis, int quant_min, int quant_max, ScalarType dtype) "
    "-> Tensor",
)
def quantize(  # noqa: PLR0913 - the arguments are those of ONNX QuantizeLinear, and the code range
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    """Return the integer codes of ``x``.

    Args:
        x: any shape; float32, float16 or bfloat16.
        scale: shape () per tensor, or (channels,) along ``axis``; strictly positive.
        zero_point: shape of ``scale``; any integer dtype.
        axis: the dimension of ``x`` that keeps its own scale, None per tensor.
        quant_min, quant_max: lowest and highest code; may be narrower than ``dtype`` (4 bits in an int8); -448 and 448
            for float8 e4m3.
        dtype: one of CODE_DTYPES.
    """
    codes = x.float() / _along(scale, x.dim(), axis)
    if not dtype.is_floating_point:
        codes = torch.round(codes).add_(_along(zero_point, x.dim(), axis))
    # Clamped before the cast, which turns what is beyond the largest e4m3 into NaN.
    return codes.clamp_(quant_min, quant_max).to(dtype)


@torch.library.custom_op(
    "fxq::dequantize",
    mutates_args=(),
    schema="(Tensor q, Tensor scale, Tensor zero_point, int? axis, ScalarType out_dtype) -> Tensor",
)
def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, out_dtype: torch.dtype) -> Tensor:
    """Return the values that the codes ``q`` stand for; arguments as in :func:`quantize`."""
    values = q.to(torch.float32, copy=True).sub_(_along(zero_point, q.dim(), axis))
    return values.mul_(_along(scale, q.dim(), axis)).to(out_dtype)


@quantize.register_fake
def _fake_quantize(  # noqa: PLR0913 - the signature of the operator
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


@dequantize.register_fake
def _fake_dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, out_dtype: torch.dtype) -> Tensor:
    return torch.empty_like(q, dtype=out_dtype)


def _along(param: Tensor, rank: int, axis: int | None) -> Tensor:
    """Return a scale or zero point as float32, shaped to broadcast along ``axis``."""
    param = param.float()
    if axis is None:
        return param
    shape = [1] * rank
    shape[axis] = -1
    return param.reshape(shape)


def _quantize_in_onnx(op: Any) -> Callable[..., Any]:
    from fxq.quant.ops.onnx_terms import axis_of, cast, clip_to_codes  # noqa: PLC0415 - see LoweredOp.translation

    def translated(  # noqa: PLR0913 - the signature of the operator
        x: Any, scale: Any, zero_point: Any, axis: int | None, quant_min: int, quant_max: int, dtype: int
    ) -> Any:
        scale, zero_point = cast(op, scale, x.dtype), cast(op, zero_point, dtype)
        x = clip_to_codes(op, x, (scale, zero_point, axis), (quant_min, quant_max), dtype)
        return op.QuantizeLinear(x, scale, zero_point, **axis_of(axis))

    return translated


def _dequantize_in_onnx(op: Any) -> Callable[..., Any]:
    from fxq.quant.ops.onnx_terms import axis_of, cast  # noqa: PLC0415 - see LoweredOp.translation

    def translated(q: Any, scale: Any, zero_point: Any, axis: int | None, out_dtype: int) -> Any:
        scale, zero_point = cast(op, scale, out_dtype), cast(op, zero_point, q.dtype)
        return op.DequantizeLinear(q, scale, zero_point, **axis_of(axis))

    return translated


QUANTIZE = torch.ops.fxq.quantize.default
DEQUANTIZE = torch.ops.fxq.dequantize.default
ROWS = (
    LoweredOp(QUANTIZE, "quantize", _quantize_in_onnx, is_exact=True, writes=("QuantizeLinear",)),
    LoweredOp(DEQUANTIZE, "dequantize", _dequantize_in_onnx, is_exact=True, writes=("DequantizeLinear",)),
)
