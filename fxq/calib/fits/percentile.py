"""Percentile fit: the range that holds a given share of the values.

Symmetric: amax is the left edge of the first bin whose cumulative share reaches p / 100. Affine: the share that may
stay outside, 1 - p / 100, is split evenly between the two tails, or goes to one tail where 0 has values on one side
only; each bound is found as in the symmetric case, counting from the other end.

Source: pytorch-quantization 2.2; Wu et al. 2020, arXiv:2004.09602, section 4.
"""

import torch
from torch import Tensor

from fxq.calib.histogram import Histogram
from fxq.errors import RangeError
from fxq.quant.registry import register_fit


@register_fit("percentile")
def fit(histogram: Histogram, percentile: float = 99.99) -> tuple[float, float]:
    """Return low and high; errors of :func:`fit_percentile`."""
    if histogram.symmetric:
        return 0.0, fit_percentile(histogram.counts, histogram.edges, percentile)
    return fit_percentile_affine(histogram.counts, histogram.edges, percentile)


def fit_percentile(counts: Tensor, edges: Tensor, percentile: float) -> float:
    """Return amax.

    Args:
        counts: counts of |x|, shape (bins,), not all zero.
        edges: shape (bins + 1,).
        percentile: 0 to 100.

    Raises:
        RangeError: ``percentile`` is out of range.
    """
    return float(edges[_first_reaching(counts, checked_share(percentile))])


def fit_percentile_affine(counts: Tensor, edges: Tensor, percentile: float) -> tuple[float, float]:
    """Return low and high, which hold 0; arguments and errors of :func:`fit_percentile`, over signed bins."""
    share = checked_share(percentile)
    if edges[0] < 0 < edges[-1]:
        share = (1 + share) / 2
    high = float(edges[_first_reaching(counts, share)])
    low = float(edges[-1 - _first_reaching(counts.flip(0), share)])
    return min(low, 0.0), max(high, 0.0)


def checked_share(percentile: float) -> float:
    """Return percentile / 100; RangeError if that is no share."""
    if not 0 <= percentile <= 100:
        raise RangeError("Invalid percentile. Must be in range 0 <= percentile <= 100.")
    return percentile / 100


def _first_reaching(counts: Tensor, share: float) -> int:
    # Divided, then summed, as in pytorch-quantization: its rounding decides where a share is p but for the last digit.
    shares = (counts.double() / counts.sum()).cumsum(0)
    return int(torch.searchsorted(shares, torch.tensor([share], dtype=torch.float64, device=shares.device)))
