"""``fxq::integer_mul`` and ``fxq::integer_max_pool``: products of two tensors of integers, the largest in a window.

Importing this module registers them. Source: ONNX QLinearMul of ONNX Runtime; ONNX MaxPool, which takes 8-bit integers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxq.errors import ExportError
from fxq.quant.ops.integer_terms import centered, exact
from fxq.quant.ops.lowered_op import LoweredOp

_POOLS = (None, functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)


@torch.library.custom_op(
    "fxq::integer_mul", mutates_args=(), schema="(Tensor a, int a_zero, Tensor b, int b_zero) -> Tensor"
)
def integer_mul(a: Tensor, a_zero: int, b: Tensor, b_zero: int) -> Tensor:
    """Return the int32 product of two tensors of codes, less their zero points; shapes broadcast."""
    return exact(centered(a, a_zero) * centered(b, b_zero))


@torch.library.custom_op(
    "fxq::integer_max_pool",
    mutates_args=(),
    schema="(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> Tensor",
)
def integer_max_pool(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Tensor:
    """Return the largest of each window, in the dtype of ``x``; what is padded is never the largest."""
    pool = _POOLS[len(kernel)]
    assert pool is not None
    # torch pools floats; float64 holds these integers exactly.
    return pool(x.double(), kernel, stride, padding, dilation, ceil_mode).to(x.dtype)


@integer_mul.register_fake
def _fake_mul(a: Tensor, a_zero: int, b: Tensor, b_zero: int) -> Tensor:
    shape = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
    return a.new_empty(shape, dtype=torch.int32)


@integer_max_pool.register_fake
def _fake_max_pool(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Tensor:
    pool = _POOLS[len(kernel)]
    assert pool is not None
    return pool(x.double(), kernel, stride, padding, dilation, ceil_mode).to(x.dtype)


def _mul_in_onnx(op: Any) -> Callable[..., Any]:
    from fxq.quant.ops.integer_onnx import INT32, constant, less, may_fuse, microsoft  # noqa: PLC0415 - see LoweredOp

    mul = microsoft("QLinearMul", ["A", "A_scale", "A_zero", "B", "B_scale", "B_zero", "C_scale", "C_zero"])

    def translated(a: Any, a_zero: int, b: Any, b_zero: int) -> Any:
        def fused(scale: Any, y_zero: Any, dtype: Any, channels: int | None) -> Any | None:
            if a.dtype != dtype or b.dtype != dtype:
                return None
            one = op.Constant(value_float=1.0)
            return mul(a, scale, constant(op, a_zero, dtype), b, one, constant(op, b_zero, dtype), one, y_zero)

        return may_fuse(op.Mul(less(op, a, a_zero, INT32), less(op, b, b_zero, INT32)), fused)

    return translated


def _max_pool_in_onnx(op: Any) -> Callable[..., Any]:
    from fxq.quant.ops.integer_onnx import is_codes  # noqa: PLC0415 - see LoweredOp.translation

    def translated(
        x: Any, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
    ) -> Any:
        if not is_codes(x):
            raise ExportError(
                "ONNX pools 8-bit integers: let the recipe quantize what the max pool reads, as 'onnxruntime' does"
            )
        pads, ceil = [*padding, *padding], int(ceil_mode)
        # The second output, where the largest was, nothing reads.
        return op.MaxPool(x, kernel_shape=kernel, strides=stride, pads=pads, dilations=dilation, ceil_mode=ceil)[0]

    return translated


INTEGER_MUL = torch.ops.fxq.integer_mul.default
INTEGER_MAX_POOL = torch.ops.fxq.integer_max_pool.default
ROWS = (
    LoweredOp(INTEGER_MUL, "integer", _mul_in_onnx, is_exact=True),
    LoweredOp(INTEGER_MAX_POOL, "integer", _max_pool_in_onnx, is_exact=True),
)
