"""The operator of a lowered graph for weights of few bits: ``fxq::dequantize_low_bit``.

``w = codes * step``, symmetric. The codes are held in int8, because torch computes nothing on 4 bits; the exported file
packs two of them in a byte. A step belongs to a channel, or to a block of ``block_size`` values along one dimension,
the last block of which may be shorter.

It has no gradient. Importing this module registers it. Source: ONNX DequantizeLinear 21 (blocked, INT4).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxq.quant.ops.lowered_op import LoweredOp


@torch.library.custom_op(
    "fxq::dequantize_low_bit",
    mutates_args=(),
    schema="(Tensor codes, Tensor step, int bits, int axis, int? block_size, ScalarType out_dtype) -> Tensor",
)
def dequantize_low_bit(
    codes: Tensor, step: Tensor, bits: int, axis: int, block_size: int | None, out_dtype: torch.dtype
) -> Tensor:
    """Return the values that ``codes`` stand for.

    Args:
        codes: int8, in -2^(bits - 1) .. 2^(bits - 1) - 1.
        step: (channels,) along ``axis``; with a block size the shape of ``codes`` with dimension ``axis`` replaced by
            the number of blocks, ceil(size / block_size). Rounded to ``out_dtype`` first, as the file stores it.
        bits: 2 to 8; the file holds up to 4 as INT4, more as INT8.
    """
    step = step.to(out_dtype).float()
    if block_size is None:
        shape = [1] * codes.dim()
        shape[axis] = -1
        spread = step.reshape(shape)
    else:
        spread = step.repeat_interleave(block_size, dim=axis).narrow(axis, 0, codes.shape[axis])
    return (codes.float() * spread).to(out_dtype)


@dequantize_low_bit.register_fake
def _fake_dequantize_low_bit(
    codes: Tensor, step: Tensor, bits: int, axis: int, block_size: int | None, out_dtype: torch.dtype
) -> Tensor:
    return torch.empty_like(codes, dtype=out_dtype)


def _in_onnx(op: Any) -> Callable[..., Any]:
    from fxq.quant.ops.onnx_terms import INT4, cast  # noqa: PLC0415 - see LoweredOp.translation

    def translated(codes: Any, step: Any, bits: int, axis: int, block_size: int | None, out_dtype: int) -> Any:
        packed = op.Cast(codes, to=INT4) if bits <= 4 else codes  # taken into the stored tensor later
        block = {} if block_size is None else {"block_size": block_size}
        return op.DequantizeLinear(packed, cast(op, step, out_dtype), axis=axis, **block)

    return translated


DEQUANTIZE_LOW_BIT = torch.ops.fxq.dequantize_low_bit.default
ROWS = (
    LoweredOp(
        DEQUANTIZE_LOW_BIT,
        "dequantize",
        _in_onnx,
        stored=(0, 1),
        is_exact=True,
        opset=21,
        writes=("DequantizeLinear",),
    ),
)
