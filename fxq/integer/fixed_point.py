"""Fixed-point multipliers: ``M = M0 * 2^-n``, with ``M0`` a 32-bit integer.

``n`` is as large as possible: ``M0`` of the largest multiplier then has 31 bits, and is off by at most 2^-31 of itself.

Source: Jacob et al. 2018, arXiv:1712.05877, section 2.2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fxq.errors import GraphError

_LARGEST = 2**31 - 1
# Shifting by more leaves nothing of a 64-bit sum.
_MOST = 62


def fixed_point(ratios: Sequence[Tensor], bounds: Sequence[Tensor], where: str) -> tuple[list[Tensor], Tensor]:
    """Return the multipliers M0 of each ratio, and the shift n that they share, all int32.

    Args:
        ratios: M of each term, float64; () or (channels,).
        bounds: the largest magnitude of the integers that each is multiplied with, below 2^31; shaped like a ratio.
        where: for the message of an error.

    Raises:
        GraphError: a ratio is not finite, or too large for 32 bits.
    """
    shape = torch.broadcast_shapes(*(ratio.shape for ratio in ratios))  # type: ignore[no-untyped-call]
    ratios = [ratio.double().cpu().expand(shape) for ratio in ratios]
    stacked = torch.stack(ratios).abs()
    if not bool(torch.isfinite(stacked).all()):
        raise GraphError(f"{where}: a ratio of steps is not finite; calibrate again")
    _, exponent = torch.frexp(stacked.amax(0))  # below 2^exponent
    shift = 31 - exponent
    # All terms together stay below 2^62, so that 64 bits hold them.
    total = sum(ratio.abs() * bound.double() for ratio, bound in zip(ratios, bounds, strict=True))
    assert isinstance(total, Tensor)
    shift = torch.minimum(shift, _MOST - torch.frexp(total)[1]).clamp(1, _MOST)
    power = torch.pow(2.0, shift.double())
    multipliers = [torch.round(ratio * power) for ratio in ratios]
    multipliers = [torch.where(m.abs() > _LARGEST, _rounded_down(m), m) for m in multipliers]
    if any(bool((m.abs() > _LARGEST).any()) for m in multipliers):
        raise GraphError(
            f"{where}: a step of what is added up is {float(stacked.max()):.3g} steps of the result, more than 32 bits "
            "hold; calibrate again, on data that is not constant"
        )
    return [m.to(torch.int32) for m in multipliers], shift.to(torch.int32)


def _rounded_down(multiplier: Tensor) -> Tensor:
    """Return the largest 31-bit integer where a multiplier was rounded up to 2^31."""
    return torch.where(multiplier.abs() == _LARGEST + 1, multiplier.sign() * _LARGEST, multiplier)
