"""Codes from sums: ``fxq::requantize``, by fixed-point multipliers, and ``fxq::lookup``, by a table.

``q = clamp(zero_point + round(sum_i (v_i - z_i) * M0_i / 2^n), quant_min, quant_max)``

``M_i = M0_i * 2^-n`` is what a step of the value ``v_i`` is in steps of the result, to 31 bits; ``n`` is one for all
values, so that there is one rounding, half to even, of the 64-bit sum.

In ONNX this is 64-bit integer arithmetic, bit for bit the same; where ONNX Runtime has an operator that computes sum
and codes in one (QLinearConv, QGemm, QLinearMul, QLinearAdd) it is that, with scales whose ratio is M: it multiplies in
float32, and may be off by one where a value lies between two codes. A lookup is Gather.

Importing this module registers them. Source: Jacob et al. 2018, arXiv:1712.05877, section 2.2, whose rounding is twice
and half away from zero; ONNX Runtime rounds half to even.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxq.quant.ops.lowered_op import LoweredOp


@torch.library.custom_op(
    "fxq::requantize",
    mutates_args=(),
    schema="(Tensor[] values, int[] value_zeros, Tensor[] multipliers, Tensor shift, int? axis, int zero_point, "
    "int quant_min, int quant_max, ScalarType dtype) -> Tensor",
)
def requantize(  # noqa: PLR0913 - what is added up, and the arguments of quantize
    values: list[Tensor],
    value_zeros: list[int],
    multipliers: list[Tensor],
    shift: Tensor,
    axis: int | None,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return the codes of a sum of integers that have other steps.

    Args:
        values: int8, uint8 or int32; shapes that broadcast.
        value_zeros: the code of 0 of each.
        multipliers: M0 of each, int32; () or (channels,).
        shift: n, int32, 1 to 62; () or (channels,).
        axis: the dimension of the channels, negative; None without any.
        zero_point, quant_min, quant_max: of the result.
        dtype: int8, uint8 or int32.
    """
    rank = max(value.dim() for value in values)
    total = torch.zeros((), dtype=torch.int64, device=values[0].device)
    for value, zero, multiplier in zip(values, value_zeros, multipliers, strict=True):
        total = total + (value.to(torch.int64) - zero) * _along(multiplier, rank, axis)
    n = _along(shift, rank, axis)
    half = torch.ones_like(n) << (n - 1)
    rounded = (total + (half - 1) + ((total >> n) & 1)) >> n
    return rounded.add_(zero_point).clamp_(quant_min, quant_max).to(dtype)


@torch.library.custom_op("fxq::lookup", mutates_args=(), schema="(Tensor codes, Tensor table, int lowest) -> Tensor")
def lookup(codes: Tensor, table: Tensor, lowest: int) -> Tensor:
    """Return what ``table`` has for each code: that of ``lowest`` stands first."""
    return table[codes.to(torch.int64) - lowest]


@requantize.register_fake
def _fake_requantize(  # noqa: PLR0913 - the signature of the operator
    values: list[Tensor],
    value_zeros: list[int],
    multipliers: list[Tensor],
    shift: Tensor,
    axis: int | None,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
) -> Tensor:
    shape = torch.broadcast_shapes(*(value.shape for value in values))  # type: ignore[no-untyped-call]
    return values[0].new_empty(shape, dtype=dtype)


@lookup.register_fake
def _fake_lookup(codes: Tensor, table: Tensor, lowest: int) -> Tensor:
    return torch.empty_like(codes, dtype=table.dtype)


def _along(param: Tensor, rank: int, axis: int | None) -> Tensor:
    param = param.to(torch.int64)
    if not param.dim() or axis is None:
        return param
    shape = [1] * rank
    shape[axis] = -1
    return param.reshape(shape)


def _requantize_in_onnx(op: Any) -> Callable[..., Any]:
    import onnx_ir as ir  # noqa: PLC0415 - see LoweredOp.translation

    from fxq.quant.ops import integer_onnx as write  # noqa: PLC0415 - the same

    add = write.microsoft("QLinearAdd", ["A", "A_scale", "A_zero", "B", "B_scale", "B_zero", "C_scale", "C_zero"])

    def translated(  # noqa: PLR0913 - the signature of the operator
        values: list[Any],
        value_zeros: list[int],
        multipliers: list[Any],
        shift: Any,
        axis: int | None,
        zero_point: int,
        quant_min: int,
        quant_max: int,
        dtype: int,
    ) -> Any:
        code_type = ir.DataType(dtype)
        codes = None
        if code_type in (ir.DataType.INT8, ir.DataType.UINT8):
            zero = write.constant(op, zero_point, code_type)
            scales = [_ratio(op, one, shift) for one in multipliers]
            form = write.fused_form(values[0])
            if len(values) == 1 and form is not None:
                codes = form(scales[0], zero, code_type, multipliers[0].shape[0] if len(multipliers[0].shape) else None)
            elif len(values) == 2 and axis is None and all(value.dtype == code_type for value in values):
                (a, b), (a_zero, b_zero) = values, (write.constant(op, one, code_type) for one in value_zeros)
                one = op.Constant(value_float=1.0)
                codes = add(a, scales[0], a_zero, b, scales[1], b_zero, one, zero)
        if codes is not None:
            return _clipped(op, codes, (quant_min, quant_max), code_type)
        total = None
        for value, value_zero, multiplier in zip(values, value_zeros, multipliers, strict=True):
            term = op.Mul(write.less(op, value, value_zero, write.INT64), _behind(op, multiplier, axis))
            total = term if total is None else op.Add(total, term)
        power = op.Pow(write.constant(op, 2, write.INT64), _behind(op, shift, axis))
        odd = op.Mod(_floor(op, total, power), write.constant(op, 2, write.INT64))
        half = op.Sub(op.Div(power, write.constant(op, 2, write.INT64)), write.constant(op, 1, write.INT64))
        rounded = op.Add(
            _floor(op, op.Add(op.Add(total, half), odd), power), write.constant(op, zero_point, write.INT64)
        )
        ends = (write.constant(op, end, write.INT64) for end in (quant_min, quant_max))
        return op.Cast(op.Clip(rounded, *ends), to=code_type)

    return translated


def _ratio(op: Any, multiplier: Any, shift: Any) -> Any:
    """Return M0 * 2^-n as float32; computed before the file is written, for both are stored."""
    from fxq.quant.ops.integer_onnx import FLOAT  # noqa: PLC0415 - see LoweredOp.translation

    power = op.Pow(op.Constant(value_float=2.0), op.Neg(op.Cast(shift, to=FLOAT)))
    return op.Mul(op.Cast(multiplier, to=FLOAT), power)


def _behind(op: Any, param: Any, axis: int | None) -> Any:
    """Return a multiplier or shift in int64, spread over the dimensions behind ``axis``."""
    from fxq.quant.ops.integer_onnx import INT64, constant  # noqa: PLC0415 - see LoweredOp.translation

    wide = op.Cast(param, to=INT64)
    if axis in (None, -1) or not len(param.shape):
        return wide
    return op.Unsqueeze(wide, constant(op, range(1, -axis), INT64))


def _floor(op: Any, total: Any, power: Any) -> Any:
    """Return the quotient rounded down; Div rounds towards 0, and Mod has the sign of the divisor."""
    return op.Div(op.Sub(total, op.Mod(total, power)), power)


def _clipped(op: Any, codes: Any, bounds: tuple[int, int], dtype: Any) -> Any:
    from fxq.quant.ops.integer_onnx import constant  # noqa: PLC0415 - see LoweredOp.translation

    all_of = (0, 255) if not dtype.is_signed() else (-128, 127)
    return codes if bounds == all_of else op.Clip(codes, *(constant(op, end, dtype) for end in bounds))


def _lookup_in_onnx(op: Any) -> Callable[..., Any]:
    from fxq.quant.ops.integer_onnx import INT32, less  # noqa: PLC0415 - see LoweredOp.translation

    def translated(codes: Any, table: Any, lowest: int) -> Any:
        return op.Gather(table, less(op, codes, lowest, INT32), axis=0)

    return translated


REQUANTIZE = torch.ops.fxq.requantize.default
LOOKUP = torch.ops.fxq.lookup.default
ROWS = (
    LoweredOp(REQUANTIZE, "integer", _requantize_in_onnx, stored=(3,), is_exact=True),
    LoweredOp(LOOKUP, "integer", _lookup_in_onnx, stored=(1,), is_exact=True),
)
