"""How far a quantized model is from the float one on samples, and whether another is certain to be better."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# By degrees of freedom; of a single figure nobody knows how others scatter, and any gain counts.
_STUDENT_95 = (0.0, 6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83)
_NORMAL_95 = 1.645


@dataclass(frozen=True)
class Measured:
    """How far the quantized model is from the float one.

    Args:
        sqnr_db: 10 log10(sum float^2 / sum (float - quantized)^2) over all outputs, each with the same power.
        noise: sum (float - quantized)^2 of each sample, or of each batch where samples cannot be told apart; float64.
    """

    sqnr_db: float
    noise: Tensor

    def is_no_worse_than(self, before: "Measured") -> bool:
        """Return whether the noise is no more than ``before``, over all samples and in a typical one.

        One sample with much noise decides over the sum alone, and few are held out: half of a standard error is no
        evidence against a pass that has reasons of its own.
        """
        in_sum = float(_log_ratio(before.noise.sum(), self.noise.sum()))
        typical = float(self._gains(before).mean())
        return min(in_sum, typical) >= -self._error(before) / 2

    def gains_for_certain(self, before: "Measured") -> bool:
        """Return whether the mean gain over ``before`` is more than chance makes of these samples once in 20 times.

        That is Student's t test, one-sided: the error of a model that returns a few numbers scatters tenfold from one
        sample to the next. Nor may the noise over all samples be more: what gains in most and loses more in one may
        lose in others.
        """
        is_less = bool(self.noise.sum() <= before.noise.sum())
        least = _student_95(len(self.noise) - 1) * self._error(before)
        return is_less and float(self._gains(before).mean()) >= least

    def _error(self, before: "Measured") -> float:
        """Return the standard error of the mean of the gains over samples."""
        gains = self._gains(before)
        return float(gains.std()) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0

    def _gains(self, before: "Measured") -> Tensor:
        """Return for each sample how much less its noise is, as a logarithm."""
        return _log_ratio(before.noise, self.noise)


def _student_95(freedom: int) -> float:
    """Return what Student's t with so many degrees of freedom exceeds once in 20 times; beyond the table to 0.01."""
    return _STUDENT_95[freedom] if freedom < len(_STUDENT_95) else _NORMAL_95 + 1.7 / freedom


def _log_ratio(before: Tensor, after: Tensor) -> Tensor:
    tiny = torch.finfo(before.dtype).tiny
    return (before.clamp(min=tiny) / after.clamp(min=tiny)).log()
