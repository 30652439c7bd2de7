"""Integer quantization as pure functions: symmetric (range [-amax, amax]) and affine (range [low, high]).

Symmetric: ``inverse_scale = hi / amax``, ``q = clamp(round(x * inverse_scale), lo, hi)``, ``x' = q / inverse_scale``.
Affine: ``scale = (high - low) / (hi - lo)``, ``q = clamp(round(x / scale) + zero_point, lo, hi)``,
``x' = (q - zero_point) * scale``. Rounding is half to even. Half-precision inputs are computed in float32.

Sources: pytorch-quantization 2.2 (symmetric); Jacob et al. 2018, arXiv:1712.05877, and ONNX QuantizeLinear (affine);
Bengio et al. 2013, arXiv:1308.3432 (straight-through gradient).
"""

from typing import Any

import torch
from torch import Tensor

from fxq.errors import RangeError, UnsignedInputError
from fxq.quant.descriptor import integer_bounds

# Below this range every value is coded 0 and the reported scale is 1: dividing by it would overflow.
SMALLEST_AMAX = 2.0**-24
# The same for an affine range, which has no such tradition: below, products of steps leave float32.
_SMALLEST_WIDTH = 2.0**-64


def tensor_quant(
    inputs: Tensor, amax: Tensor | float, num_bits: int = 8, unsigned: bool = False, narrow_range: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the integer codes of ``inputs``, as float, and the inverse scale ``hi / amax``.

    Args:
        inputs: any shape; float32, float16 or bfloat16. The codes have its dtype (bfloat16 holds 8-bit codes exactly,
            float16 codes of up to 11 bits).
        amax: largest representable |x|; a number, or a tensor that broadcasts against ``inputs``.

    Raises:
        UnsignedInputError: ``unsigned`` and an input is negative.
        RangeError: ``amax`` is negative or does not broadcast.

    The gradient is the identity where |x| <= amax and 0 elsewhere, as in pytorch-quantization.
    """
    bounds = integer_bounds(num_bits, unsigned, narrow_range)
    return symmetric_quant(inputs, checked_amax(inputs, amax, unsigned), bounds)


def fake_tensor_quant(
    inputs: Tensor, amax: Tensor | float, num_bits: int = 8, unsigned: bool = False, narrow_range: bool = True
) -> Tensor:
    """Return ``inputs`` quantized and dequantized; arguments and errors of :func:`tensor_quant`.

    The gradient is the identity where |x| <= amax and 0 elsewhere.
    """
    bounds = integer_bounds(num_bits, unsigned, narrow_range)
    return fake_symmetric_quant(inputs, checked_amax(inputs, amax, unsigned), bounds)


def symmetric_quant(inputs: Tensor, amax: Tensor, bounds: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """:func:`tensor_quant` without its checks, which wait for the device: for a range that was checked when stored.

    Args:
        inputs: any shape.
        amax: float32, not negative, broadcasts against ``inputs``.
        bounds: lowest and highest code; with unsigned bounds a negative input is coded 0.
    """
    if torch.is_grad_enabled() and inputs.requires_grad:
        return _SymmetricCodes.apply(inputs, amax, bounds)  # type: ignore[no-any-return]
    return _symmetric_codes(inputs, amax, bounds)


def fake_symmetric_quant(inputs: Tensor, amax: Tensor, bounds: tuple[int, int], is_covered: bool = False) -> Tensor:
    """:func:`fake_tensor_quant` without its checks; arguments of :func:`symmetric_quant`.

    ``is_covered``: no |x| is larger than ``amax``, so that the gradient is the identity everywhere.
    """
    if torch.is_grad_enabled() and inputs.requires_grad:
        return _SymmetricFakeQuant.apply(inputs, amax, bounds, is_covered)  # type: ignore[no-any-return]
    return _symmetric_values(inputs, amax, bounds)


def affine_quant(inputs: Tensor, scale: Tensor, zero_point: Tensor, lo: int, hi: int) -> Tensor:
    """Return the integer codes of ``inputs`` as float: clamp(round(x / scale) + zero_point, lo, hi). No gradient."""
    codes = torch.round(inputs.detach().float() / scale) + zero_point
    return codes.clamp_(lo, hi)


def affine_dequant(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return (codes - zero_point) * scale in float32."""
    return (codes.float() - zero_point) * scale


def fake_affine_quant(inputs: Tensor, scale: Tensor, zero_point: Tensor, lo: int, hi: int) -> Tensor:
    """Return ``inputs`` quantized and dequantized in the affine scheme.

    The gradient is the identity where the value is inside the range and 0 where it is clipped.
    """
    if torch.is_grad_enabled() and inputs.requires_grad:
        return _AffineFakeQuant.apply(inputs, scale, zero_point, (lo, hi))  # type: ignore[no-any-return]
    return affine_dequant(affine_quant(inputs, scale, zero_point, lo, hi), scale, zero_point).to(inputs.dtype)


def symmetric_inverse_scale(amax: Tensor, hi: int) -> Tensor:
    """Return hi / amax in float32, and 1 where amax is too small to divide by."""
    amax = amax.float()
    # A tensor divided by a tensor: a Python float divided by a tensor rounds differently in one case of four.
    inverse_scale = torch.full((), float(hi), dtype=torch.float32, device=amax.device) / amax
    return inverse_scale.masked_fill(amax <= SMALLEST_AMAX, 1.0)


def symmetric_scale(amax: Tensor, hi: int) -> Tensor:
    """Return amax / hi in float32, and 1 where amax is too small."""
    amax = amax.float()
    scale = amax / torch.full((), float(hi), dtype=torch.float32, device=amax.device)
    return scale.masked_fill(amax <= SMALLEST_AMAX, 1.0)


def affine_params(low: Tensor, high: Tensor, lo: int, hi: int) -> tuple[Tensor, Tensor]:
    """Return scale and zero point (both float32) that map [low, high] onto the codes lo..hi.

    The range is widened to hold 0, so that 0 is exact (padding stays zero). A range that holds only 0 gets scale 1.

    Raises:
        RangeError: low > high, or a bound is not finite.

    Source: Jacob et al. 2018, arXiv:1712.05877, section 2.1.
    """
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise RangeError("the quantization range is not finite")
    if bool((low > high).any()):
        raise RangeError("the quantization range is empty: low > high")
    return affine_scale_and_zero_point(low, high, lo, hi)


def affine_scale_and_zero_point(low: Tensor, high: Tensor, lo: int, hi: int) -> tuple[Tensor, Tensor]:
    """:func:`affine_params` without its checks, which wait for the device: for a range checked when stored."""
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    scale = (high - low) / torch.full((), float(hi - lo), dtype=torch.float32, device=low.device)
    scale = torch.where(is_zero_range(low, high), torch.ones_like(scale), scale)
    zero_point = torch.round(lo - low / scale).clamp_(lo, hi)
    return scale, zero_point


def is_zero_range(low: Tensor, high: Tensor) -> Tensor:
    """Return where [low, high], widened to hold 0, holds nothing else: there the step is 1 (bool)."""
    return high.float().clamp(min=0) - low.float().clamp(max=0) <= _SMALLEST_WIDTH


def checked_amax(inputs: Tensor, amax: Tensor | float, unsigned: bool) -> Tensor:
    """Return ``amax`` as a float32 tensor on the device of ``inputs``, checked as :func:`tensor_quant` says."""
    amax = torch.as_tensor(amax, dtype=torch.float32, device=inputs.device)
    if bool((amax < 0).any()):
        raise RangeError("Negative values in amax")
    if unsigned and inputs.numel() and bool(inputs.min() < 0):
        raise UnsignedInputError("Negative values encountered in unsigned quantization.")
    if amax.dim() > inputs.dim() and amax.numel() == 1:
        amax = amax.reshape(())
    try:
        fits = torch.broadcast_shapes(inputs.shape, amax.shape) == inputs.shape  # type: ignore[no-untyped-call]
    except RuntimeError:
        fits = False
    if not fits:
        raise RangeError(
            f"amax of shape {tuple(amax.shape)} does not broadcast to inputs of shape {tuple(inputs.shape)}"
        )
    return amax


def straight_through(grad: Tensor, inside: Tensor) -> Tensor:
    """Return ``grad`` where ``inside`` (bool, of its shape), else 0."""
    # Times 0 and 1: two thirds of the time that torch.where takes on a CPU, and as bytes faster than as bool.
    return grad * inside.view(torch.uint8)


def _symmetric_codes(inputs: Tensor, amax: Tensor, bounds: tuple[int, int]) -> tuple[Tensor, Tensor]:
    inverse_scale = symmetric_inverse_scale(amax, bounds[1])
    codes = torch.round(inputs.float() * inverse_scale).clamp_(*bounds)
    # A code times 0 is 0, and NaN stays NaN, where the range is too small.
    return codes.mul_(amax > SMALLEST_AMAX).to(inputs.dtype), inverse_scale


def _symmetric_values(inputs: Tensor, amax: Tensor, bounds: tuple[int, int]) -> Tensor:
    inverse_scale = symmetric_inverse_scale(amax, bounds[1])
    codes = (inputs.float() * inverse_scale).round_().clamp_(*bounds)
    # A code divided by infinity is 0, and NaN stays NaN, where the range is too small.
    return codes.div_(inverse_scale.masked_fill(amax <= SMALLEST_AMAX, torch.inf)).to(inputs.dtype)


class _SymmetricCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, amax: Tensor, bounds: tuple[int, int]) -> tuple[Tensor, Tensor]:
        codes, scale = _symmetric_codes(inputs, amax, bounds)
        ctx.save_for_backward(inputs.float().abs() <= amax)
        ctx.mark_non_differentiable(scale)
        return codes, scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _grad_scale: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return straight_through(grad, inside), None, None


class _SymmetricFakeQuant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, amax: Tensor, bounds: tuple[int, int], is_covered: bool) -> Tensor:
        # Of the input only a bit for each element is kept, and nothing where none is clipped.
        ctx.is_covered = is_covered
        if not is_covered:
            ctx.save_for_backward(inputs.float().abs() <= amax)
        return _symmetric_values(inputs, amax, bounds)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.is_covered:
            return grad, None, None, None
        (inside,) = ctx.saved_tensors
        return straight_through(grad, inside), None, None, None


class _AffineFakeQuant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[int, int]) -> Tensor:
        codes = (inputs.float() / scale).round_().add_(zero_point)
        ctx.save_for_backward((codes >= bounds[0]).logical_and_(codes <= bounds[1]))
        return codes.clamp_(*bounds).sub_(zero_point).mul_(scale).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return straight_through(grad, inside), None, None, None
