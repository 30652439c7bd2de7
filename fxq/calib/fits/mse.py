"""Mean squared error fit: the range whose fake quantization changes the bin centres least, weighted by the counts.

``argmin over amax of sum(counts * (fake_quant(centres, amax) - centres)^2)``, candidates computed side by side in
blocks that bound the memory. Codes are computed in float32 as the quantizer computes them, errors in float64.

Affine: low and high are searched in turn, each first in steps of 16 bins over everything and then bin by bin around
the best, until neither moves. That finds a local minimum; where 0 has values on one side only, every candidate of
the other side is tried.

Source: pytorch-quantization 2.2 (symmetric).
"""

import torch
from torch import Tensor

from fxq.calib.histogram import Histogram
from fxq.errors import RangeError
from fxq.quant.affine import affine_dequant, affine_params, affine_quant, symmetric_inverse_scale
from fxq.quant.descriptor import integer_bounds
from fxq.quant.float8 import fake_scaled_e4m3
from fxq.quant.registry import register_fit

# float32 values in one block of candidates x bins: small enough for the cache.
BLOCK = 2**17
COARSE_STRIDE = 16
MAX_ROUNDS = 16


@register_fit("mse")
def fit(histogram: Histogram, stride: int = 1, start_bin: int = 128) -> tuple[float, float]:
    """Return low and high; arguments and errors of :func:`fit_mse`."""
    counts, edges, num_bits = histogram.counts, histogram.edges, histogram.num_bits
    if histogram.symmetric or isinstance(num_bits, tuple):  # float8 is symmetric
        return 0.0, fit_mse(counts, edges, num_bits, histogram.unsigned, stride, start_bin)
    return fit_mse_affine(counts, edges, num_bits, histogram.unsigned, stride, start_bin)


def fit_mse(
    counts: Tensor,
    edges: Tensor,
    num_bits: int | tuple[int, int] = 8,
    unsigned: bool = False,
    stride: int = 1,
    start_bin: int = 128,
) -> float:
    """Return amax: the centre with the least error, the first one of equals.

    Args:
        counts: counts of |x|, shape (bins,).
        edges: shape (bins + 1,).
        num_bits, unsigned: the format; (4, 3) for float8 e4m3.
        stride, start_bin: candidates are the centres of bins ``start_bin, start_bin + stride, ...``.

    Raises:
        RangeError: there is no candidate.
    """
    check_candidates(len(counts) - 1, stride, start_bin)
    centres = bin_centres(edges)
    candidates = centres[start_bin::stride]
    held, held_counts = _non_empty(centres, counts)
    rows = max(1, BLOCK // len(held))
    if isinstance(num_bits, tuple):
        errors = [_float8_errors(held, held_counts, block) for block in torch.split(candidates, rows)]
    else:
        hi = integer_bounds(num_bits, unsigned, narrow_range=False)[1]
        errors = [_symmetric_errors(held, held_counts, block, hi) for block in torch.split(candidates, rows)]
    return float(candidates[torch.cat(errors).argmin()])


def fit_mse_affine(
    counts: Tensor, edges: Tensor, num_bits: int = 8, unsigned: bool = False, stride: int = 1, start_bin: int = 128
) -> tuple[float, float]:
    """Return low and high, which hold 0 and are bin centres or 0; arguments and errors of :func:`fit_mse`."""
    check_candidates(len(counts) - 1, stride, start_bin)
    centres = bin_centres(edges)
    search = _AffineSearch(centres, counts, integer_bounds(num_bits, unsigned, narrow_range=False))
    zero, last = search.zero, len(centres) - 1
    if zero == 0:
        return search.best([(-1, high) for high in range(start_bin, last + 1, stride)])[1]
    if zero > last:
        return search.best([(low, last + 1) for low in range(last - start_bin, -1, -stride)])[1]
    pair = (0, last)
    for _ in range(MAX_ROUNDS):
        before = pair
        pair = search.best_high(pair, stride, start_bin)
        pair = search.best_low(pair, stride, start_bin)
        if pair == before:
            break
    return search.bounds(pair)


def check_candidates(last: int, stride: int, start_bin: int) -> None:
    """Raise RangeError unless start_bin, start_bin + stride, ... has a member up to ``last``."""
    if stride < 1:
        raise RangeError(f"stride must be 1 or more, got {stride}")
    if not 1 <= start_bin <= last:
        raise RangeError(f"start_bin must be from 1 to {last} for this histogram, got {start_bin}")


def bin_centres(edges: Tensor) -> Tensor:
    """Return the centres of the bins in float32, shape (bins,)."""
    edges = edges.float()
    return (edges[1:] + edges[:-1]) / 2


def _non_empty(centres: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centres and counts (float64) of the bins that weigh anything."""
    held = counts > 0
    return centres[held], counts[held].double()


def _symmetric_errors(centres: Tensor, counts: Tensor, amax: Tensor, hi: int) -> Tensor:
    """Return the error of each candidate, shape (candidates,). Fake quantization as in fake_tensor_quant, in place."""
    inverse_scale = symmetric_inverse_scale(amax, hi)[:, None]
    quantized = torch.mul(centres, inverse_scale).round_().clamp_(max=hi).div_(inverse_scale)  # candidates, bins
    return quantized.double().sub_(centres).square_() @ counts


def _float8_errors(centres: Tensor, counts: Tensor, amax: Tensor) -> Tensor:
    """Return the error of each candidate, shape (candidates,)."""
    quantized = fake_scaled_e4m3(centres, amax[:, None])  # candidates, bins
    return quantized.double().sub_(centres).square_() @ counts


class _AffineSearch:
    """Errors of pairs of bin numbers (low, high). A low of -1 and a high of ``bins`` stand for a bound of 0."""

    def __init__(self, centres: Tensor, counts: Tensor, codes: tuple[int, int]) -> None:
        self.zero = int((centres < 0).sum())  # the first bin right of 0
        self._bounds = torch.cat([centres, centres.new_zeros(1)])  # so that index -1 and index bins are 0
        self._centres, self._counts = _non_empty(centres, counts)
        self._codes = codes

    def bounds(self, pair: tuple[int, int]) -> tuple[float, float]:
        """Return the bounds that a pair stands for."""
        return float(self._bounds[pair[0]]), float(self._bounds[pair[1]])

    def best(self, pairs: list[tuple[int, int]]) -> tuple[tuple[int, int], tuple[float, float]]:
        """Return the pair with the least error, the first one of equals, and its bounds."""
        rows = max(1, BLOCK // len(self._centres))
        errors = [self._errors(block) for block in torch.split(torch.tensor(pairs, device=self._centres.device), rows)]
        pair = pairs[int(torch.cat(errors).argmin())]
        return pair, self.bounds(pair)

    def best_high(self, pair: tuple[int, int], stride: int, start_bin: int) -> tuple[int, int]:
        """Return the pair with the best high for its low, not worse than ``pair``."""
        low, lowest = pair[0], max(self.zero, pair[0] + start_bin)
        for near, step in self._grids(stride):
            start, stop = max(lowest, pair[1] - near), min(len(self._bounds) - 2, pair[1] + near)
            pair = self.best([pair, *((low, high) for high in range(start, stop + 1, step))])[0]
        return pair

    def best_low(self, pair: tuple[int, int], stride: int, start_bin: int) -> tuple[int, int]:
        """Return the pair with the best low for its high, not worse than ``pair``."""
        high, highest = pair[1], min(self.zero - 1, pair[1] - start_bin)
        for near, step in self._grids(stride):
            start, stop = max(0, pair[0] - near), min(highest, pair[0] + near)
            pair = self.best([pair, *((low, high) for low in range(start, stop + 1, step))])[0]
        return pair

    def _grids(self, stride: int) -> list[tuple[int, int]]:
        """Return how far to look on either side, and in which steps: first everywhere, then near the best."""
        coarse = max(stride, COARSE_STRIDE)
        return [(len(self._bounds), coarse), (coarse, stride)]

    def _errors(self, pairs: Tensor) -> Tensor:
        bounds = self._bounds[pairs]  # pairs, 2
        step, zero_point = affine_params(bounds[:, :1], bounds[:, 1:], *self._codes)
        codes = affine_quant(self._centres, step, zero_point, *self._codes)  # pairs, bins
        return affine_dequant(codes, step, zero_point).double().sub_(self._centres).square_() @ self._counts
