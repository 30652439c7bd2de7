"""Float8 e4m3 as a pure function: ``s = 448 / amax``, ``x' = e4m3(clamp(x * s, -448, 448)) / s``.

e4m3 (four exponent bits, three of mantissa, no infinity) rounds half to even; 448 is its largest number. Source:
Micikevicius et al. 2022, arXiv:2209.05433.
"""

from typing import Any

import torch
from torch import Tensor

from fxq.quant.affine import SMALLEST_AMAX, checked_amax, straight_through, symmetric_inverse_scale
from fxq.quant.descriptor import LARGEST_E4M3


def e4m3_quant(inputs: Tensor, amax: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
    """Return the e4m3 numbers that stand for ``inputs``, in its dtype, and the scale ``448 / amax``.

    Arguments and errors of :func:`fake_e4m3_quant`. No gradient: what is trained is fake-quantized.
    """
    amax = checked_amax(inputs, LARGEST_E4M3 if amax is None else amax, unsigned=False)
    codes, scale = _e4m3_codes(inputs.detach(), amax)
    return codes.mul_(amax > SMALLEST_AMAX).to(inputs.dtype), scale


def fake_e4m3_quant(inputs: Tensor, amax: Tensor | float | None = None) -> Tensor:
    """Return ``inputs`` rounded to float8 e4m3 and back, in the dtype of ``inputs``.

    Args:
        inputs: any shape.
        amax: what is mapped to 448; a number or a tensor that broadcasts. None stands for 448, no scaling.

    Raises:
        RangeError: ``amax`` is negative or does not broadcast.

    The gradient is the identity where |x| <= amax and 0 elsewhere.
    """
    return fake_scaled_e4m3(inputs, checked_amax(inputs, LARGEST_E4M3 if amax is None else amax, unsigned=False))


def fake_scaled_e4m3(inputs: Tensor, amax: Tensor) -> Tensor:
    """:func:`fake_e4m3_quant` without its checks, which wait for the device: for a range that was checked when stored.

    Args:
        inputs: any shape.
        amax: float32, not negative, broadcasts against ``inputs``.
    """
    if torch.is_grad_enabled() and inputs.requires_grad:
        return _FakeE4M3.apply(inputs, amax)  # type: ignore[no-any-return]
    return _e4m3_values(inputs, amax)


def _e4m3_codes(inputs: Tensor, amax: Tensor) -> tuple[Tensor, Tensor]:
    inverse_scale = symmetric_inverse_scale(amax, LARGEST_E4M3)
    # The cast turns what is beyond 448 into NaN: clamp first.
    codes = (inputs.float() * inverse_scale).clamp_(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn).float()
    return codes, inverse_scale


def _e4m3_values(inputs: Tensor, amax: Tensor) -> Tensor:
    codes, inverse_scale = _e4m3_codes(inputs, amax)
    return codes.div_(inverse_scale.masked_fill(amax <= SMALLEST_AMAX, torch.inf)).to(inputs.dtype)


class _FakeE4M3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, amax: Tensor) -> Tensor:
        ctx.save_for_backward(inputs.float().abs() <= amax)
        return _e4m3_values(inputs, amax)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return straight_through(grad, inside), None
