"""Affine quantization by its range, as pure functions: the counterparts of ``tensor_quant`` and ``fake_tensor_quant``.

The range [low, high] is widened to hold 0; then ``scale = (high - low) / (qmax - qmin)``,
``q = clamp(round(x / scale) + zero_point, qmin, qmax)``, ``x' = (q - zero_point) * scale``. Half-precision inputs are
computed in float32. Sources: Jacob et al. 2018, arXiv:1712.05877; ONNX QuantizeLinear; the argument order and the
gradient are those of pytorch-quantization 2.2.
"""

from typing import Any

import torch
from torch import Tensor

from fxq.errors import RangeError
from fxq.quant.affine import affine_dequant, affine_params, affine_quant, straight_through
from fxq.quant.descriptor import integer_bounds


def affine_tensor_quant(
    inputs: Tensor, low: Tensor | float, high: Tensor | float, num_bits: int = 8, unsigned: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the integer codes of ``inputs`` as float, the scale and the zero point (both float32).

    Args:
        inputs: any shape; float32, float16 or bfloat16. The codes have its dtype.
        low, high: lowest and highest value to represent; numbers, or tensors that broadcast against ``inputs``.
        num_bits: 2 to 16.
        unsigned: codes from 0 to 2^num_bits - 1; else from -2^(num_bits - 1) to 2^(num_bits - 1) - 1.

    Raises:
        RangeError: the range is empty, not finite, or does not broadcast.

    The gradient is the identity where ``low <= x <= high`` and 0 elsewhere.
    """
    scale, zero_point, bounds, inside = _prepared(inputs, low, high, (num_bits, unsigned))
    codes = affine_quant(inputs, scale, zero_point, *bounds).to(inputs.dtype)
    return _StraightThrough.apply(inputs, codes, inside), scale, zero_point


def fake_affine_tensor_quant(
    inputs: Tensor, low: Tensor | float, high: Tensor | float, num_bits: int = 8, unsigned: bool = False
) -> Tensor:
    """Return ``inputs`` quantized and dequantized; arguments, errors and gradient of :func:`affine_tensor_quant`."""
    scale, zero_point, bounds, inside = _prepared(inputs, low, high, (num_bits, unsigned))
    codes = affine_quant(inputs, scale, zero_point, *bounds)
    values = affine_dequant(codes, scale, zero_point).to(inputs.dtype)
    return _StraightThrough.apply(inputs, values, inside)  # type: ignore[no-any-return]


def _prepared(
    inputs: Tensor, low: Tensor | float, high: Tensor | float, form: tuple[int, bool]
) -> tuple[Tensor, Tensor, tuple[int, int], Tensor]:
    """Return scale, zero point, lowest and highest code, and where the inputs lie inside of the range."""
    bounds = integer_bounds(*form, narrow_range=False)
    low, high = (torch.as_tensor(bound, dtype=torch.float32, device=inputs.device).detach() for bound in (low, high))
    scale, zero_point = affine_params(low, high, *bounds)
    try:
        shape = torch.broadcast_shapes(inputs.shape, scale.shape)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise _broadcast_error(inputs, scale) from error
    if shape != inputs.shape:
        raise _broadcast_error(inputs, scale)
    exact = inputs.detach().float()
    return scale, zero_point, bounds, (exact >= low.clamp(max=0)) & (exact <= high.clamp(min=0))


def _broadcast_error(inputs: Tensor, bound: Tensor) -> RangeError:
    return RangeError(
        f"a range of shape {tuple(bound.shape)} does not broadcast to inputs of shape {tuple(inputs.shape)}"
    )


class _StraightThrough(torch.autograd.Function):
    """Returns ``outputs``; their gradient goes to ``inputs`` where ``inside``."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, outputs: Tensor, inside: Tensor) -> Tensor:
        ctx.save_for_backward(inside)
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return straight_through(grad, inside), None, None
