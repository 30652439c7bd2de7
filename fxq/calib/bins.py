"""Bins: counts on a grid that only the range of the values decides, so that merging is exact in any order.

The width is the power of two that gives ``num_bins`` to ``2 * num_bins`` bins over the range. A value x >= 0 is in bin
``floor(x / width)``, a negative one in bin ``-1 - floor(-x / width)``: the mirror image. Division by a power of two is
exact, and so is doubling the width, as floor(floor(y) / 2) = floor(y / 2). A range that grows makes bins wider by
powers of two. So the counts are a function of the values alone, whatever batches they came in.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

# A CPU chunk stays in the cache, below the 32768 values from which torch starts threads and waits for them; a GPU chunk
# bounds the temporaries.
CPU_CHUNK, DEVICE_CHUNK = 2**15 - 2**10, 2**24
# Neighbouring values are counted in separate copies of the bins: after a ReLU most fall into one bin, and a CPU that
# increments the same number again and again waits for each store (measured: 1.4 instead of 3 ns a value).
LANES = 4
MAX_LANE_SIZE = 2**13
SMALLEST_EXPONENT = -126  # of the smallest normal float32: a subnormal quotient would lose its digits


@dataclass(frozen=True, eq=False)
class Bins:
    """Counts of the bins ``first, first + 1, ...``.

    Args:
        width: of a bin, a power of two.
        first: number of the first bin; its left edge is ``first * width``.
        counts: int64, on the data's device. A value on an end of the range has a bin of its own behind it.
    """

    width: float
    first: int
    counts: Tensor

    @classmethod
    def over(cls, low: float, high: float, num_bins: int, device: torch.device) -> Self:
        """Return empty bins over [low, high], which holds 0 and may be 0 alone."""
        exponent = math.frexp((high - low) / num_bins)[1] - 1
        width = 2.0 ** max(exponent, SMALLEST_EXPONENT) if high > low else 2.0**SMALLEST_EXPONENT
        first = -1 - math.floor(-low / width) if low < 0 else 0
        size = math.floor(high / width) + 1 - first
        return cls(width, first, torch.zeros(size, dtype=torch.int64, device=device))

    def with_bins(self, other: Self) -> Self:
        """Return these bins with the counts of ``other`` added, whose bins lie inside of these and are no wider."""
        shift = min(round(math.log2(self.width / other.width)), 62)  # beyond, all lie in the two bins around 0
        numbers = torch.arange(other.first, other.first + len(other.counts), device=self.counts.device)
        counts = other.counts.to(self.counts.device)
        return type(self)(self.width, self.first, self.counts.index_add(0, (numbers >> shift) - self.first, counts))

    def with_values(self, values: Tensor, absolute: bool, skip_zeros: bool) -> Self:
        """Return these bins with ``values`` (one-dimensional, inside of them) added; ``absolute`` counts |x|."""
        counts = self.counts + count_values(values, self.width, self.first, len(self.counts), absolute)
        if skip_zeros:
            counts[-self.first] -= values.numel() - torch.count_nonzero(values)
        return type(self)(self.width, self.first, counts)

    def over_range(self, low: float, high: float, num_bins: int) -> tuple[Tensor, Tensor]:
        """Return counts (int64) and edges (float64), on the CPU, in the whole bins that hold [low, high].

        The bins on the ends include their outer edge, as numpy's last bin does. There are at least ``num_bins``.
        """
        first = math.floor(low / self.width)
        stop = max(math.ceil(high / self.width), first + num_bins)
        numbers = torch.arange(self.first, self.first + len(self.counts), device="cpu").clamp(first, stop - 1)
        counts = torch.zeros(stop - first, dtype=torch.int64, device="cpu").index_add(
            0, numbers - first, self.counts.cpu()
        )
        return counts, torch.arange(first, stop + 1, dtype=torch.float64, device="cpu") * self.width


def count_values(values: Tensor, width: float, first: int, size: int, absolute: bool) -> Tensor:
    """Return how many values lie in each of the bins ``first, ..., first + size - 1``; int64, on their device.

    Args:
        values: any floating dtype, counted as float32; shape (values,). All lie inside of the bins.
        width: of a bin, exactly a float32.
        first: number of the first bin.
        size: number of bins.
        absolute: count |x|; needed where values are negative and ``first`` is 0.
    """
    # A tensor, because a GPU would multiply by the reciprocal of a number, which rounds if it is no power of two.
    divisor = torch.tensor(width, dtype=torch.float32, device=values.device)
    on_cpu = values.device.type == "cpu"
    lanes = LANES if on_cpu and size <= MAX_LANE_SIZE else 1
    length = max(CPU_CHUNK if on_cpu else DEVICE_CHUNK, 4 * size)
    numbers = torch.arange(min(length, len(values)) if lanes > 1 else 0, dtype=torch.int32, device=values.device)
    lane_start = numbers % lanes * size
    counts = torch.zeros(lanes * size, dtype=torch.int64, device=values.device)
    for chunk in torch.split(values, length):
        floats = chunk.float()
        quotient = floats / divisor
        place = (quotient.abs_() if absolute else quotient).to(torch.int32)  # rounds towards 0
        if first:
            # By the sign of the value: that of a quotient which underflowed is lost.
            place.sub_((floats < 0).to(torch.int32)).sub_(first)
        if lanes > 1:
            place += lane_start[: len(place)]
        counts += torch.bincount(place, minlength=lanes * size)
    return counts.view(lanes, size).sum(0)
