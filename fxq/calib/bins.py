"""Bins: an immutable histogram on a grid of equal bins anchored at 0, which can widen, coarsen and merge.

Bin j holds the values with ``floor(x / width) = j``, the quotient computed in float32. That is what torch.histc and
numpy.histogram compute over the same edges, up to values within a rounding of an edge. Because the rule does not know
where the histogram ends, widening never moves a count and the order of the batches does not matter. The one exception,
values exactly on the end of the first range, is kept apart in ``closed_end.py``.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

# 128 times the range of the first batch at 2048 bins; beyond it, pairs of bins are joined to bound memory and time.
MAX_BINS = 2**18
# A CPU chunk stays in the cache, below the 32768 values from which torch starts threads and waits for them; a GPU chunk
# bounds the temporaries.
CPU_CHUNK, DEVICE_CHUNK = 2**15 - 2**10, 2**24
# Neighbouring values are counted in separate copies of the bins: after a ReLU most fall into one bin, and a CPU that
# increments the same number again and again waits for each store (measured: 1.4 instead of 3 ns a value).
LANES = 4
MAX_LANE_SIZE = 2**13
SMALLEST_WIDTH = 2.0**-126  # the smallest normal float32: a subnormal width would lose its digits


@dataclass(frozen=True, eq=False)
class Bins:
    """Counts of the bins ``first, first + 1, ...``.

    Args:
        width: width of a bin, exactly a float32.
        first: number of the first bin; its left edge is ``first * width``.
        counts: int64, on the data's device. One bin more than the range needs, for values exactly at its end.
    """

    width: float
    first: int
    counts: Tensor

    @classmethod
    def over(cls, low: float, high: float, num_bins: int, device: torch.device) -> Self:
        """Return empty bins over [low, high], which must hold 0, in ``num_bins`` bins (and one if 0 is not an edge)."""
        width = max((high - low) / num_bins, SMALLEST_WIDTH)
        width = float(torch.tensor(width, dtype=torch.float32))
        return cls(width, 0, torch.zeros(1, dtype=torch.int64, device=device)).widened(low, high)

    def widened(self, low: float, high: float) -> Self:
        """Return bins that also hold [low, high]: empty bins are added on either end, no count moves."""
        bins = self
        while math.ceil(high / bins.width) - math.floor(low / bins.width) >= MAX_BINS:
            bins = bins.coarsened()
        first = min(bins.first, math.floor(low / bins.width))
        stop = max(bins.first + len(bins.counts), math.ceil(high / bins.width) + 1)
        padding = (bins.first - first, stop - bins.first - len(bins.counts))
        if padding == (0, 0):
            return bins
        return type(self)(bins.width, first, torch.nn.functional.pad(bins.counts, padding))

    def coarsened(self) -> Self:
        """Return the histogram of the same values with bins twice as wide; exact, as floor(floor(y)/2) = floor(y/2)."""
        first = self.first // 2
        odd = self.first - 2 * first
        counts = torch.nn.functional.pad(self.counts, (odd, (len(self.counts) + odd) % 2))
        return type(self)(self.width * 2, first, counts.reshape(-1, 2).sum(1))

    def counted(self, values: Tensor, absolute: bool, skip_zeros: bool) -> Self:
        """Return the histogram with ``values`` (one-dimensional, inside the bins) added; ``absolute`` counts |x|."""
        counts = self.counts + self._counts_of(values, absolute)
        if skip_zeros:
            counts[-self.first] -= values.numel() - torch.count_nonzero(values)
        return type(self)(self.width, self.first, counts)

    def _counts_of(self, values: Tensor, absolute: bool) -> Tensor:
        # A tensor, because a GPU would multiply by the reciprocal of a number and round differently.
        width = torch.tensor(self.width, dtype=torch.float32, device=values.device)
        size = len(self.counts)
        on_cpu = values.device.type == "cpu"
        lanes = LANES if on_cpu and size <= MAX_LANE_SIZE else 1
        length = max(CPU_CHUNK if on_cpu else DEVICE_CHUNK, 4 * size)
        lane_start = torch.arange(min(length, len(values)) if lanes > 1 else 0, dtype=torch.int32) % lanes * size
        counts = torch.zeros(lanes * size, dtype=torch.int64, device=values.device)
        for chunk in torch.split(values, length):
            position = chunk.float() / width
            if absolute:
                position.abs_()
            elif self.first:
                position.floor_().sub_(self.first)
            place = position.to(torch.int32)
            if lanes > 1:
                place += lane_start[: len(place)]
            counts += torch.bincount(place, minlength=lanes * size)
        return counts.view(lanes, size).sum(0)

    def with_zeros(self, zeros: int) -> Self:
        """Return the histogram with ``zeros`` zeros added."""
        counts = self.counts.clone()
        counts[-self.first] += zeros
        return type(self)(self.width, self.first, counts)

    def merged(self, other: Self) -> Self:
        """Return the histogram of both, with the wider bins of the two.

        Exact when the widths agree or divide each other. Otherwise each narrow bin goes to the wide bin that holds its
        centre: the total is exact, and a count is off by at most half a narrow bin.
        """
        if self.width < other.width:
            return other._with_rebinned(self)
        return self._with_rebinned(other)

    def _with_rebinned(self, other: Self) -> Self:
        stop = other.first + len(other.counts)
        bins = self.widened(other.first * other.width, (stop - 1) * other.width)
        counts = other.counts.to(bins.counts.device)
        scale = other.width / bins.width
        numbers = torch.arange(other.first, stop, dtype=torch.float64, device="cpu")
        place = ((numbers + 0.5) * scale).floor().long() - bins.first
        return type(self)(bins.width, bins.first, bins.counts.index_add(0, place.to(counts.device), counts))

    def over_range(self, low: float, high: float, num_bins: int) -> tuple[Tensor, Tensor]:
        """Return counts (int64) and edges (float64), on the CPU, in the whole bins that hold [low, high].

        As in numpy, the last bin includes its right edge. There are at least ``num_bins`` bins.
        """
        first = math.floor(low / self.width)
        # The width was rounded to float32, so a range of exactly n bins may divide to a hair more.
        stop = max(math.ceil(high / self.width * (1 - 2**-23)), first + num_bins)
        held = self.counts.cpu()[first - self.first :]
        counts = torch.zeros(stop - first, dtype=torch.int64)
        size = min(len(held), stop - first)
        counts[:size] = held[:size]
        counts[-1] += held[size:].sum()
        edges = torch.arange(first, stop + 1, dtype=torch.float64) * self.width
        edges[-1] = max(float(edges[-1]), high)
        return counts, edges
