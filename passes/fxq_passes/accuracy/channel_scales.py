"""The search for a factor for each channel of a tensor, so that quantized layers that read it err least.

``W x = (W diag(s)) (x / s)``. Candidates are ``s_c = amax_c^p / wmax_c^r``, normalized to a geometric mean of 1: with
p = 1, r = 0 all channels of the tensor get one range; with p = r = 1/2 it is SmoothQuant's. What counts is the error
of the outputs on samples, without its mean for each output channel, which a bias makes up for. Where a bias can take
it back, all candidates are tried once more on channels whose middle lies at 0.

Either takes room away from values that calibration did not see. So candidates are cross-validated: factors and
ranges come from one half of the samples, the error from the other half, both ways. And the fewer samples reached what
a channel reached, the more room it keeps: one that was never active has as much as without factors.

Sources: Nagel et al. 2019, arXiv:1906.04721 (cross-layer equalization); Xiao et al. 2022, arXiv:2211.10438
(SmoothQuant); Wei et al. 2023, arXiv:2304.09145 (shifts). The search over both exponents by output error is ours.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fxq import TensorQuantizer
from fxq.graph.observers import ranged
from fxq_passes.accuracy.reader import FOLDS, Extremes, Reader, worst_ratio

_EQUAL = (1.0, 0.0)
_KNOWN_GOOD = (_EQUAL, (0.5, 0.0), (0.5, 0.5), (1.0, 1.0))
_STEP = 0.25
_ENOUGH = 0.95  # of the error without: what a shift must bring
_SMALLEST_SHARE = 1e-3  # of the largest channel: those below are dead, and must not be blown up


class Change(NamedTuple):
    """What is done to the channels of a tensor: ``(x - shift_c) / scale_c``, both (channels,).

    ``shift_c`` is None where nothing is taken from them. ``error`` is what is left of the readers' error, the worse of
    two halves of the samples: below 1 where both gain.
    """

    scale_c: Tensor
    shift_c: Tensor | None
    error: float


def equal_ranges(readers: Sequence[Reader], extremes: Extremes, quantizer: TensorQuantizer | None) -> Change:
    """Return the factors that give all channels one range; arguments as of :func:`best_change`."""
    search = _Search(readers, extremes, quantizer)
    search.try_all([_EQUAL])
    return search.result()


def best_change(
    readers: Sequence[Reader], extremes: Extremes, quantizer: TensorQuantizer | None, can_center: bool = False
) -> Change:
    """Return the best factor for each channel, and whether to move the middle of each to 0 before.

    A search over both exponents, in steps of a quarter: from the best of a few that are known to be good, or from no
    factor, to what is better beside it, until nothing is.

    Args:
        readers: all layers that read the tensor.
        extremes: of each channel, in each half of the samples.
        quantizer: of the tensor; None where it stays in float.
        can_center: a layer before it can take a shift of each channel, and all readers can take it back.
    """
    search = _Search(readers, extremes, quantizer)
    found = search.best_of_all()
    if not can_center:
        return found
    centered = _Search(readers, extremes, quantizer, search.start).best_of_all()
    return centered if centered.error < _ENOUGH * found.error else found


class _Search:
    """The pairs of exponents (p, r) that were tried, and the ``best`` of them; (0, 0) is no factor.

    Args:
        start: errors of both folds without any change; given, all channels are centered.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        extremes: Extremes,
        quantizer: TensorQuantizer | None,
        start: Sequence[float] | None = None,
    ) -> None:
        self._readers, self._extremes, self._quantizer = readers, extremes, quantizer
        self._centers = start is not None
        reach_c = torch.stack([reader.weight_reach() for reader in readers]).amax(0)
        largest = float(reach_c.max()) or 1.0  # weights that are all zero: each channel has the same say, which is none
        self._reach_c = reach_c.clamp(min=largest * _SMALLEST_SHARE)
        self.best, self._tried = (0.0, 0.0), {(0.0, 0.0)}
        self.start = [self._error(self.best, fold) for fold in FOLDS] if start is None else start
        self._least = worst_ratio(partial(self._error, self.best), self.start, math.inf) if self._centers else 1.0

    def best_of_all(self) -> Change:
        """Return the best of all that is worth a try."""
        self.try_all(_KNOWN_GOOD)
        while self.try_all(_beside(self.best)):
            pass
        return self.result()

    def try_all(self, exponents: Iterable[tuple[float, float]]) -> bool:
        """Try those that were not; return whether one is better than the best before."""
        before = self._least
        for pair in exponents:
            if pair in self._tried:
                continue
            self._tried.add(pair)
            ratio = worst_ratio(partial(self._error, pair), self.start, self._least)
            if ratio < self._least:
                self.best, self._least = pair, ratio
        return self._least < before

    def result(self) -> Change:
        """Return the best change, made from all samples, and the error with it."""
        return Change(self._scale(self.best, None), self._shift(None), self._least)

    def _shift(self, half: int | None) -> Tensor | None:
        return self._extremes.center(half) if self._centers else None

    def _moved(self, half: int | None) -> Extremes:
        shift_c = self._shift(half)
        return self._extremes if shift_c is None else self._extremes.moved(shift_c)

    def _scale(self, pair: tuple[float, float], half: int | None) -> Tensor:
        if pair == (0, 0):
            return torch.ones_like(self._reach_c)
        return _scale(self._moved(half), half, self._reach_c, *pair)

    def _error(self, pair: tuple[float, float], fold: tuple[int, int]) -> float:
        """Return the error of all readers on one half of the samples, with what the other half suggests; never 0."""
        learned, judged = fold
        scale_c, shift_c, extremes = self._scale(pair, learned), self._shift(learned), self._moved(learned)
        low_c, high_c = extremes.low_hc[learned] / scale_c, extremes.high_hc[learned] / scale_c
        scaled = None if self._quantizer is None else ranged(self._quantizer, low_c.min(), high_c.max())
        error = sum(reader.error(scaled, scale_c, judged, shift_c) for reader in self._readers)
        return max(error, torch.finfo(torch.float32).tiny)


def _beside(pair: tuple[float, float]) -> Iterator[tuple[float, float]]:
    for step_p, step_r in itertools.product((-_STEP, 0.0, _STEP), repeat=2):
        p, r = pair[0] + step_p, pair[1] + step_r
        if 0 <= p <= 1 and 0 <= r <= 1:
            yield p, r


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
