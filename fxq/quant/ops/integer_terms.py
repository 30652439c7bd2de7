"""What the operators on integers share: exact sums.

A sum of products of integers is computed in float64, which holds every integer below 2^53 and whose product runs on
every device; none of these sums reaches 2^31 (``to_integer`` refuses what could), so nothing is rounded. What a device
may round on its way (FFT and Winograd convolutions) is far below 1/2 and goes when the sum is rounded.
"""

import torch
from torch import Tensor


def centered(codes: Tensor, zero_point: int | Tensor | None) -> Tensor:
    """Return ``codes`` less their zero point, one for all or one for each row, as float64."""
    values = codes.double()
    if zero_point is None:
        return values
    if isinstance(zero_point, Tensor):
        zero_point = zero_point.double().reshape(-1, *[1] * (codes.dim() - 1)) if zero_point.dim() else zero_point
    return values - zero_point


def exact(total: Tensor) -> Tensor:
    """Return a sum of integers as int32."""
    return total.round_().to(torch.int32)
