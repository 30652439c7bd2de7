"""Layers on integers: ``fxq::integer_conv`` and ``fxq::integer_linear``, 8-bit codes to int32 sums.

``sum = bias + sum_i (x_i - x_zero) * (w_i - w_zero)``

A transposed convolution is a convolution of its input with ``spread - 1`` zeros between neighbours (XLA's
lhs_dilation) by the weight with its taps in reverse. Pools and resizes are ``integer_linear`` along one spatial
dimension after the other.

Source: Jacob et al. 2018, arXiv:1712.05877, section 2.2; ONNX ConvInteger, MatMulInteger and QLinearConv.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxq.quant.ops.integer_terms import centered, exact
from fxq.quant.ops.lowered_op import LoweredOp

_CONVOLUTIONS = (None, functional.conv1d, functional.conv2d, functional.conv3d)


@torch.library.custom_op(
    "fxq::integer_conv",
    mutates_args=(),
    schema="(Tensor x, int x_zero, Tensor weight, Tensor? weight_zero, Tensor? bias, int[] stride, int[] pads, "
    "int[] spread, int[] dilation, int groups) -> Tensor",
)
def integer_conv(  # noqa: PLR0913 - the arguments of a convolution
    x: Tensor,
    x_zero: int,
    weight: Tensor,
    weight_zero: Tensor | None,
    bias: Tensor | None,
    stride: list[int],
    pads: list[int],
    spread: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Return the int32 sums of a convolution in one, two or three dimensions.

    Args:
        x: codes, (batch, in, ...) or (in, ...); int8, uint8 or int32.
        x_zero: the code of 0, which pads.
        weight: codes, (out, in / groups, ...).
        weight_zero: () or (out,); None for 0.
        bias: int32, (out,).
        stride, dilation: for each dimension.
        pads: how many zeros before each dimension, then how many behind each, as ONNX counts; negative ones cut off.
        spread: for each dimension, how far neighbours of ``x`` are moved apart; 1 leaves them.
        groups: of channels.
    """
    dims = len(stride)
    padded = functional.pad(_spread(centered(x, x_zero), spread), _torch_pads(pads))
    conv: Any = _CONVOLUTIONS[dims]
    total = conv(padded, centered(weight, weight_zero), None, stride, 0, dilation, groups)
    return exact(total if bias is None else total + bias.double().reshape(-1, *[1] * dims))


@torch.library.custom_op(
    "fxq::integer_linear",
    mutates_args=(),
    schema="(Tensor x, int x_zero, Tensor weight, Tensor? weight_zero, Tensor? bias, int dim) -> Tensor",
)
def integer_linear(
    x: Tensor, x_zero: int, weight: Tensor, weight_zero: Tensor | None, bias: Tensor | None, dim: int
) -> Tensor:
    """Return the int32 sums of products along one dimension, which becomes ``out`` long.

    Args:
        x: codes, or sums of another one; ``in`` long along ``dim``.
        x_zero: the code of 0.
        weight: (out, in), any integers.
        weight_zero: () or (out,); None for 0.
        bias: int32, (out,).
        dim: negative.
    """
    if x.shape[dim] != weight.shape[1]:
        raise RuntimeError(
            f"an integer model is for the sizes of its example inputs: {weight.shape[1]} along dimension {dim}, got "
            f"{tuple(x.shape)}"
        )
    total = functional.linear(centered(x, x_zero).movedim(dim, -1), centered(weight, weight_zero))
    return exact(total if bias is None else total + bias.double()).movedim(-1, dim).contiguous()


@integer_conv.register_fake
def _fake_conv(  # noqa: PLR0913 - the signature of the operator
    x: Tensor,
    x_zero: int,
    weight: Tensor,
    weight_zero: Tensor | None,
    bias: Tensor | None,
    stride: list[int],
    pads: list[int],
    spread: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    dims = len(stride)
    sizes = []
    for axis in range(dims):
        size = (x.shape[axis - dims] - 1) * spread[axis] + 1 + pads[axis] + pads[dims + axis]
        sizes.append((size - dilation[axis] * (weight.shape[axis - dims] - 1) - 1) // stride[axis] + 1)
    return x.new_empty((*x.shape[: x.dim() - dims - 1], weight.shape[0], *sizes), dtype=torch.int32)


@integer_linear.register_fake
def _fake_linear(
    x: Tensor, x_zero: int, weight: Tensor, weight_zero: Tensor | None, bias: Tensor | None, dim: int
) -> Tensor:
    shape = list(x.shape)
    shape[dim] = weight.shape[0]
    return x.new_empty(shape, dtype=torch.int32)


def _spread(x: Tensor, spread: list[int]) -> Tensor:
    """Put ``spread - 1`` zeros between neighbours."""
    if all(one == 1 for one in spread):
        return x
    dims = len(spread)
    sizes = [(size - 1) * one + 1 for size, one in zip(x.shape[-dims:], spread, strict=True)]
    wide = x.new_zeros((*x.shape[:-dims], *sizes))
    places: tuple[Any, ...] = (..., *(slice(None, None, one) for one in spread))
    wide[places] = x
    return wide


def _torch_pads(pads: list[int]) -> list[int]:
    """Return ``pads`` as torch.nn.functional.pad wants them: last dimension first, before and behind side by side."""
    dims = len(pads) // 2
    return [pads[axis + side * dims] for axis in reversed(range(dims)) for side in (0, 1)]


def _conv_in_onnx(op: Any) -> Callable[..., Any]:
    from fxq.quant.ops.integer_onnx import INT64, constant, may_fuse, spread  # noqa: PLC0415 - see LoweredOp.translation

    def translated(  # noqa: PLR0913 - the signature of the operator
        x: Any,
        x_zero: int,
        weight: Any,
        weight_zero: Any | None,
        bias: Any | None,
        stride: list[int],
        pads: list[int],
        spreads: list[int],
        dilation: list[int],
        groups: int,
    ) -> Any:
        dims, x_type = len(stride), x.dtype
        zero, w_zero = constant(op, x_zero, x_type), _zero_of(op, weight, weight_zero)
        if any(one != 1 for one in spreads) or min(pads) < 0:
            x, pads = spread(op, x, zero, spreads, pads), [0] * (2 * dims)
        options = {"strides": stride, "pads": pads, "dilations": dilation, "group": groups}
        total = op.ConvInteger(x, weight, zero, w_zero, **options)
        if bias is not None:
            total = op.Add(total, op.Unsqueeze(bias, constant(op, range(1, dims + 1), INT64)))

        def fused(scale: Any, y_zero: Any, dtype: Any, channels: int | None) -> Any | None:
            if dtype != x_type:
                return None
            one, w_zeros = op.Constant(value_float=1.0), _zero_of(op, weight, weight_zero, channels)
            return op.QLinearConv(x, one, zero, weight, scale, w_zeros, one, y_zero, bias, **options)

        return may_fuse(total, fused)

    return translated


def _linear_in_onnx(op: Any) -> Callable[..., Any]:
    from fxq.quant.ops.integer_onnx import (  # noqa: PLC0415 - see LoweredOp.translation
        INT32,
        as_type,
        constant,
        integer_attribute,
        is_codes,
        less,
        may_fuse,
        microsoft,
    )

    def translated(x: Any, x_zero: int, weight: Any, weight_zero: Any | None, bias: Any | None, dim: int) -> Any:
        if not (is_codes(x) and is_codes(weight) and dim == -1):
            values, matrix = less(op, x, x_zero, INT32), as_type(op, weight, INT32)
            if dim == -2:
                return op.MatMul(matrix, values)
            order = list(range(len(x.shape)))
            order[dim], order[-1] = order[-1], order[dim]
            total = op.MatMul(op.Transpose(values, perm=order), op.Transpose(matrix, perm=[1, 0]))
            total = total if bias is None else op.Add(total, bias)
            return op.Transpose(total, perm=order)
        zero, w_zero = constant(op, x_zero, x.dtype), _zero_of(op, weight, weight_zero)
        total = op.MatMulInteger(x, op.Transpose(weight, perm=[1, 0]), zero, w_zero)
        total = total if bias is None else op.Add(total, bias)
        names = ["A", "a_scale", "a_zero", "B", "b_scale", "b_zero", "bias", "y_scale", "y_zero"]
        gemm = microsoft("QGemm", names, {"transB": integer_attribute("transB")})

        def fused(scale: Any, y_zero: Any, dtype: Any, channels: int | None) -> Any | None:
            if dtype != x.dtype or len(x.shape) != 2:
                return None
            one, w_zeros = op.Constant(value_float=1.0), _zero_of(op, weight, weight_zero, channels)
            return gemm(x, one, zero, weight, scale, w_zeros, bias, one, y_zero, transB=1)

        return may_fuse(total, fused)

    return translated


def _zero_of(op: Any, weight: Any, weight_zero: Any | None, channels: int | None = None) -> Any:
    """Return the zero points of a weight, as many as it has steps."""
    from fxq.quant.ops.integer_onnx import constant  # noqa: PLC0415 - see LoweredOp.translation

    if weight_zero is not None:
        return weight_zero
    return constant(op, 0 if channels is None else [0] * channels, weight.dtype)


INTEGER_CONV = torch.ops.fxq.integer_conv.default
INTEGER_LINEAR = torch.ops.fxq.integer_linear.default
ROWS = (
    LoweredOp(INTEGER_CONV, "integer", _conv_in_onnx, stored=(2,), is_exact=True),
    LoweredOp(INTEGER_LINEAR, "integer", _linear_in_onnx, stored=(2,), is_exact=True),
)
