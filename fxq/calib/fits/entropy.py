"""Entropy fit: the range whose quantized histogram tells most about the real one (TensorRT's calibration).

For a window of bins: p is the window with the mass outside added to its end bins; q is the window merged into
``groups = 2^(bits - 1 + unsigned)`` groups, each spread again evenly over its non-empty bins, without the mass
outside. The window with the least ``KL(p || q)``, both normalised, wins; of equals the widest. The bin at 0 takes its
neighbour's count, because zeros are exact under any range and would drown the rest.

With cumulative sums a window costs one logarithm per group, not one per bin. With T all mass, M the mass of the window
and d_g the mass of group g over its non-empty bins:
``KL = (sum p log p - sum_g mass_g log d_g - left log d_first - right log d_last) / T + log M - log T``.

Symmetric windows are bins 0..i. Affine windows are [i, j) around 0 on the signed histogram with 2^bits groups: high
and low are searched in turn, over all candidates each, until neither moves, which finds a local minimum.

Sources: Migacz, 8-bit Inference with TensorRT, GTC 2017; pytorch-quantization 2.2.
"""

import torch
from torch import Tensor

from fxq.calib.fits.mse import check_candidates
from fxq.calib.histogram import Histogram
from fxq.errors import CalibrationError
from fxq.quant.registry import register_fit

# Values in one block of windows x groups: small enough for the cache.
BLOCK = 2**16
# Divergences closer than this are equal: the sums of either formula are no better.
TIE = 1e-12
MAX_ROUNDS = 8


@register_fit("entropy")
def fit(histogram: Histogram, stride: int = 1, start_bin: int = 128) -> tuple[float, float]:
    """Return low and high; arguments and errors of :func:`fit_entropy`."""
    if isinstance(histogram.num_bits, tuple):
        raise CalibrationError(
            "entropy merges bins into equal groups, one for each integer code, and float8 codes are not equally "
            "far apart: use method 'mse', 'percentile' or 'max'"
        )
    search = (histogram.num_bits, histogram.unsigned, stride, start_bin)
    if histogram.symmetric:
        return 0.0, fit_entropy(histogram.counts, histogram.edges, *search)
    return fit_entropy_affine(histogram.counts, histogram.edges, *search)


def fit_entropy(
    counts: Tensor, edges: Tensor, num_bits: int = 8, unsigned: bool = False, stride: int = 1, start_bin: int = 128
) -> float:
    """Return amax: the right edge of the best window.

    Args:
        counts: counts of |x|, shape (bins,).
        edges: shape (bins + 1,).
        num_bits, unsigned: the integer format.
        stride, start_bin: windows hold ``start_bin, start_bin + stride, ...`` bins.

    Raises:
        RangeError: there is no candidate.
        CalibrationError: no candidate has a finite divergence.
    """
    check_candidates(len(counts), stride, start_bin)
    stops = torch.arange(start_bin, len(counts) + 1, stride, device=counts.device)
    groups = 2 ** (num_bits - 1 + int(unsigned))
    counts = counts.clone()
    counts[0] = counts[1]
    divergences = window_divergences(counts, torch.zeros_like(stops), stops, groups)
    return float(edges[stops[_last_minimum(divergences)]])


def fit_entropy_affine(
    counts: Tensor, edges: Tensor, num_bits: int = 8, unsigned: bool = False, stride: int = 1, start_bin: int = 128
) -> tuple[float, float]:
    """Return low and high, which hold 0; arguments and errors of :func:`fit_entropy`, over signed bins.

    ``unsigned`` changes nothing: an affine format has 2^bits codes either way.
    """
    bins = len(counts)
    check_candidates(bins, stride, start_bin)
    zero = int((edges[:-1] < 0).sum())  # the edge at 0
    counts = counts.clone()
    at_zero, neighbour = (zero, zero + 1) if zero < bins - 1 else (bins - 1, bins - 2)
    counts[at_zero] = counts[neighbour]
    start, stop = 0, bins
    for turn in range(MAX_ROUNDS):
        candidates = sorted({*range(max(zero, start + start_bin), bins + 1, stride), stop})
        stops = torch.tensor(candidates, device=counts.device)
        divergences = window_divergences(counts, torch.full_like(stops, start), stops, 2**num_bits)
        best_stop = int(stops[_last_minimum(divergences)])
        if turn and best_stop == stop:
            break
        stop = best_stop
        candidates = sorted({*range(min(zero, stop - start_bin), -1, -stride), start}, reverse=True)
        starts = torch.tensor(candidates, device=counts.device)
        divergences = window_divergences(counts, starts, torch.full_like(starts, stop), 2**num_bits)
        best_start = int(starts[_last_minimum(divergences)])
        if best_start == start:
            break
        start = best_start
    return float(edges[start]), float(edges[stop])


def window_divergences(counts: Tensor, starts: Tensor, stops: Tensor, groups: int) -> Tensor:
    """Return KL(p || q) in float64 of the windows [start, stop), shape (windows,); infinite where undefined.

    Args:
        counts: int64, shape (bins,).
        starts, stops: int64, shape (windows,).
        groups: number of groups; a window with fewer bins has one bin a group.
    """
    groups = min(groups, len(counts))
    sums = _Sums(counts)
    rows = max(1, BLOCK // groups)
    blocks = zip(torch.split(starts, rows), torch.split(stops, rows), strict=True)
    return torch.cat([sums.divergences(start, stop, groups) for start, stop in blocks])


class _Sums:
    """Cumulative sums of a histogram; index i holds the sum over the bins before i."""

    def __init__(self, counts: Tensor) -> None:
        self._share = counts.double() / counts.sum()
        self._mass = _cumulative(counts)
        self._non_empty = _cumulative((counts > 0).long())
        self._entropy = _cumulative(torch.xlogy(self._share, self._share))
        self._total = counts.sum().double()

    def divergences(self, start: Tensor, stop: Tensor, groups: int) -> Tensor:
        """Return KL(p || q) of one block of windows."""
        left = self._mass[start] / self._total
        right = 1 - self._mass[stop] / self._total
        first, last = self._share[start], self._share[stop - 1]
        inside, log_density = self._groups(start, stop, groups)  # windows, groups
        used = (stop - start).clamp(max=groups)
        log_first, log_last = log_density[:, 0], log_density.gather(1, (used - 1)[:, None])[:, 0]

        p_log_p = self._entropy[stop - 1] - self._entropy[start + 1]
        p_log_p += torch.xlogy(first + left, first + left) + torch.xlogy(last + right, last + right)
        # left and right count only where the end bin is not empty; elsewhere the divergence is infinite.
        p_log_q = (inside * log_density).sum(1) + left * log_first + right * log_last
        divergence = p_log_p - p_log_q + torch.log((self._mass[stop] - self._mass[start]) / self._total)
        impossible = ((left > 0) & (first == 0)) | ((right > 0) & (last == 0)) | divergence.isnan()
        one_bin = torch.where(last > 0, 0.0, torch.inf)  # p and q are both 1 there, or undefined
        divergence = torch.where(stop - start == 1, one_bin, divergence)
        return torch.where(impossible, torch.inf, divergence)

    def _groups(self, start: Tensor, stop: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        """Return the share of each group and the logarithm of its share per non-empty bin (0 where it has none)."""
        bins = (stop - start)[:, None]
        used = bins.clamp(max=groups)
        number = torch.minimum(torch.arange(groups + 1, device=used.device), used)
        # Bin j of the window belongs to group floor(j * groups / bins), so group k starts at ceil(k * bins / groups).
        bounds = start[:, None] + (number * bins + used - 1) // used
        share = self._mass[bounds].diff(dim=1) / self._total
        density = share / self._non_empty[bounds].diff(dim=1).clamp_(min=1)
        return share, torch.where(density > 0, density, 1.0).log_()


def _cumulative(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _last_minimum(divergences: Tensor) -> int:
    least = divergences.min()
    if not bool(torch.isfinite(least)):
        raise CalibrationError(
            "no candidate range has a finite entropy: use stride=1, more batches, or method 'percentile' or 'max'"
        )
    return int(torch.nonzero(divergences <= least + TIE).max())
