"""Ranges that training learns: a learned step size (LSQ) and a learned clip (PACT). Symmetric only.

Both have the values of a fixed range, and differ in the gradient of the range. With step ``s = amax / hi`` and
``v = x / s``, ``dx = g`` where ``lo < v < hi``, else 0, in both; a value on a bound counts as clipped. LSQ:
``ds = sum(g * (round(v) - v))`` over the inside, plus ``g * lo`` or ``g * hi`` where clipped, times
``1 / sqrt(elements * hi)``; ``d amax = ds / hi``. PACT: ``d amax = sum(g * lo / hi)`` or ``sum(g)`` over what is
clipped below and above, the derivative of a clamp to what the codes reach.

Sources: Esser et al. 2020, arXiv:1902.08153, equations 1 to 5; Choi et al. 2018, arXiv:1805.06085, equations 1 to 3.
"""

import math
from typing import Any

import torch
from torch import Tensor

from fxq.quant.affine import SMALLEST_AMAX, fake_symmetric_quant, symmetric_inverse_scale

# Whether x = amax is clipped must not hang on how x * (hi / amax) was rounded.
_BELOW_BOUND = 1 - 2.0**-22


def learned_fake_quant(inputs: Tensor, amax: Tensor, bounds: tuple[int, int], rule: str = "lsq") -> Tensor:
    """Return ``inputs`` quantized and dequantized, with the gradient of ``rule`` for ``inputs`` and ``amax``.

    The values are those of :func:`fxq.quant.affine.fake_symmetric_quant`. Per channel, ``elements`` is the number of
    elements that share one range.

    Args:
        inputs: any shape.
        amax: float32, broadcasts against ``inputs``.
        bounds: lowest and highest code.
        rule: "lsq" or "pact".
    """
    if not (torch.is_grad_enabled() and amax.requires_grad):
        return fake_symmetric_quant(inputs, amax, bounds)
    return _LearnedFakeQuant.apply(inputs, amax, bounds, rule)  # type: ignore[no-any-return]


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
    """What is written is what takes time: one tensor is kept for backward, and masks are never written."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, amax: Tensor, bounds: tuple[int, int], rule: str) -> Tensor:
        # A range that training drove to zero or below clips everything; the floor lets the gradient open it again.
        is_closed = amax <= SMALLEST_AMAX
        inverse_scale = symmetric_inverse_scale(amax.masked_fill(is_closed, 2 * SMALLEST_AMAX), bounds[1])
        edges = bounds[0] * _BELOW_BOUND, bounds[1] * _BELOW_BOUND
        scaled = (inputs.float() * inverse_scale).clamp_(*edges)
        ctx.save_for_backward(scaled)
        ctx.hi, ctx.edges, ctx.rule, ctx.shape = bounds[1], edges, rule, amax.shape
        # A code divided by infinity is 0, and NaN stays NaN, where the range is too small.
        return scaled.round().div_(inverse_scale.masked_fill(is_closed, torch.inf)).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (scaled,) = ctx.saved_tensors
        exact = grad.float()
        # The derivative of hardtanh: the gradient strictly between the edges, where what is clipped lies, else 0.
        grad_inputs = torch.ops.aten.hardtanh_backward(exact, scaled, *ctx.edges)
        total = _sum_of_products(exact - grad_inputs, scaled, ctx.shape)
        if ctx.rule == "lsq":
            total += _sum_of_products(grad_inputs, scaled.round().sub_(scaled), ctx.shape)
            elements = scaled.numel() / max(ctx.shape.numel(), 1)
            total /= math.sqrt(max(elements, 1) * ctx.hi)
        return grad_inputs.to(grad.dtype), total / ctx.hi, None, None


def _sum_of_products(left: Tensor, right: Tensor, shape: torch.Size) -> Tensor:
    """Return ``(left * right).sum_to_size(shape)``, both float32."""
    if shape.numel() == 1 and left.is_contiguous() and right.is_contiguous():
        return torch.dot(left.view(-1), right.view(-1)).reshape(shape)  # the product is never written
    return (left * right).sum_to_size(shape)


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
