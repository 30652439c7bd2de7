"""The search for a factor for each channel of a tensor, so that quantized layers that read it err least.

``W x = (W diag(s)) (x / s)``. Candidates are ``s_c = amax_c^p / wmax_c^r``, normalized to a geometric mean of 1: with
p = 1, r = 0 all channels of the tensor get one range; with p = r = 1/2 it is SmoothQuant's. What counts is the error
of the outputs on samples, without its mean for each output channel, which a bias makes up for.

A factor takes room away from values that calibration did not see. So candidates are cross-validated: factors and
ranges come from one half of the samples, the error from the other half, both ways. And the fewer samples reached what
a channel reached, the more room it keeps: one that was never active has as much as without factors.

Sources: Nagel et al. 2019, arXiv:1906.04721 (cross-layer equalization); Xiao et al. 2022, arXiv:2211.10438
(SmoothQuant). The search over both exponents by output error is ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fxq import TensorQuantizer
from fxq.graph.observers import ranged
from fxq_passes.accuracy.reader import FOLDS, Extremes, Reader, worst_ratio

_SMALLEST_SHARE = 1e-3  # of the largest channel: those below are dead, and must not be blown up


def equal_ranges(
    readers: Sequence[Reader], extremes: Extremes, quantizer: TensorQuantizer | None
) -> tuple[Tensor, float]:
    """Return the factors that give all channels one range, and the error with them; as :func:`best_scale`."""
    return best_scale(readers, extremes, quantizer, [(1.0, 0.0)])


def best_scale(
    readers: Sequence[Reader],
    extremes: Extremes,
    quantizer: TensorQuantizer | None,
    exponents: Sequence[tuple[float, float]],
) -> tuple[Tensor, float]:
    """Return the best factor for each channel, and its error in terms of that without one.

    Args:
        readers: all layers that read the tensor.
        extremes: of each channel, in each half of the samples.
        quantizer: of the tensor; None where it stays in float.
        exponents: pairs (p, r) to try.

    Returns:
        The factors (channels,), and the worse of the ratios on two halves of the samples: below 1 where both gain.
    """
    reach_c = torch.stack([reader.weight_reach() for reader in readers]).amax(0)
    reach_c = reach_c.clamp(min=max(float(reach_c.max()) * _SMALLEST_SHARE, torch.finfo(reach_c.dtype).tiny))
    start = [_error(readers, extremes, quantizer, torch.ones_like(reach_c), fold) for fold in FOLDS]
    best, least = None, 1.0
    for exponents_pr in exponents:

        def error(fold: tuple[int, int], pr: tuple[float, float] = exponents_pr) -> float:
            return _error(readers, extremes, quantizer, _scale(extremes, fold[0], reach_c, *pr), fold)

        ratio = worst_ratio(error, start, least)
        if ratio < least:
            best, least = exponents_pr, ratio
    if best is None:
        return torch.ones_like(reach_c), least
    return _scale(extremes, None, reach_c, *best), least


def _scale(extremes: Extremes, half: int | None, reach_c: Tensor, p: float, r: float) -> Tensor:
    """Return a candidate made from one half of the samples, or from all."""
    amax_c, tiny = extremes.amax(half), torch.finfo(reach_c.dtype).tiny
    expected_c = extremes.expected(half)
    expected_c = expected_c.clamp(min=max(float(expected_c.max()) * _SMALLEST_SHARE, tiny))
    scale_c = expected_c.pow(p) / reach_c.pow(r)
    room = float((amax_c / scale_c).max())
    never_active = (amax_c == 0) & (scale_c < expected_c / max(room, tiny))
    scale_c = torch.where(never_active, expected_c / max(room, tiny), scale_c)
    return scale_c / scale_c.log().mean().exp()


def _error(
    readers: Sequence[Reader],
    extremes: Extremes,
    quantizer: TensorQuantizer | None,
    scale_c: Tensor,
    fold: tuple[int, int],
) -> float:
    """Return the error of all readers on one half of the samples, with the range that the other half gives."""
    learned, judged = fold
    low_c, high_c = extremes.low_hc[learned] / scale_c, extremes.high_hc[learned] / scale_c
    scaled = None if quantizer is None else ranged(quantizer, low_c.min(), high_c.max())
    return max(sum(reader.error(scaled, scale_c, judged) for reader in readers), torch.finfo(torch.float32).tiny)
