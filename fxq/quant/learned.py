"""Ranges that training learns: a learned step size (LSQ) and a learned clip (PACT). Symmetric only.

LSQ, with step ``s = amax / hi`` and ``v = x / s``: ``dx = g`` where ``lo <= v <= hi``, else 0;
``ds = sum(g * (round(v) - v))`` over the inside, plus ``g * lo`` or ``g * hi`` where clipped, times
``1 / sqrt(elements * hi)``; ``d amax = ds / hi``. PACT: ``clamp(x, -amax, amax)``, whose bound gets the gradient of
what it clips.

Sources: Esser et al. 2020, arXiv:1902.08153, equations 1 to 3; Choi et al. 2018, arXiv:1805.06085.
"""

import math
from typing import Any

import torch
from torch import Tensor

from fxq.quant.affine import SMALLEST_AMAX, fake_symmetric_quant, straight_through, symmetric_inverse_scale


def learned_fake_quant(inputs: Tensor, amax: Tensor, bounds: tuple[int, int]) -> Tensor:
    """Return ``inputs`` quantized and dequantized, with the LSQ gradient for ``inputs`` and ``amax``.

    The values are those of :func:`fxq.quant.affine.fake_symmetric_quant`. Per channel, ``elements`` is the number of
    elements that share one range.

    Args:
        inputs: any shape.
        amax: float32, broadcasts against ``inputs``.
        bounds: lowest and highest code.
    """
    if not torch.is_grad_enabled():
        return fake_symmetric_quant(inputs, amax, bounds)
    return _LearnedFakeQuant.apply(inputs, amax, bounds)  # type: ignore[no-any-return]


def learned_clip(inputs: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return ``clamp(inputs, low, high)``; each bound gets the summed gradient of the elements it clips.

    An element on a bound counts as clipped. ``low`` and ``high`` broadcast against ``inputs``.
    """
    if not torch.is_grad_enabled():
        return _clip(inputs, low, high)
    return _LearnedClip.apply(inputs, low, high)  # type: ignore[no-any-return]


def _clip(inputs: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.clamp(inputs.float(), low, high).to(inputs.dtype)


class _LearnedFakeQuant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, amax: Tensor, bounds: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(inputs, amax)
        ctx.bounds = bounds
        return fake_symmetric_quant(inputs, amax, bounds)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        inputs, amax = ctx.saved_tensors
        lo, hi = ctx.bounds
        # A range that training drove to zero or below clips everything; the floor lets the gradient open it again.
        codes = inputs.float() * symmetric_inverse_scale(amax.clamp(min=2 * SMALLEST_AMAX), hi)
        clipped = codes.clamp(lo, hi)
        inside = codes == clipped
        slope = torch.where(inside, codes.round().sub_(codes), clipped)
        elements = inputs.numel() / max(amax.numel(), 1)
        grad_step = slope.mul_(grad).sum_to_size(amax.shape) / math.sqrt(max(elements, 1) * hi)
        return straight_through(grad, inside), grad_step / hi, None


class _LearnedClip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, low, high)
        return _clip(inputs, low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs, low, high = ctx.saved_tensors
        below, above = inputs.float() <= low, inputs.float() >= high
        exact = grad.float()
        grad_low = exact.where(below, 0).sum_to_size(low.shape)
        grad_high = exact.where(above, 0).sum_to_size(high.shape)
        return grad.masked_fill(below | above, 0), grad_low, grad_high
