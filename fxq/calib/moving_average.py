"""MovingAverageMinMaxCalibrator: exponential moving averages of the batches' minimum and maximum.

First batch: ``m = x``; then ``m = m + c * (x - m)``, c the averaging constant. Source: the formula of torch's
MovingAverageMinMaxObserver; Jacob et al. 2018, arXiv:1712.05877, section 3.1.
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from fxq.calib.minmax import MinMaxCalibrator
from fxq.calib.state import check_tensor, or_nothing
from fxq.errors import RangeError


class MovingAverageMinMaxCalibrator(MinMaxCalibrator):
    """Averages minimum and maximum over the batches; affine by default.

    Args:
        num_bits, axis, unsigned, symmetric: those of :class:`Calibrator`.
        averaging_constant: weight of the newest batch, more than 0 and at most 1.

    The result depends on the order of the batches: ``a.merge(b)`` gives, up to float32 rounding, what one calibrator
    gives that saw the batches of a and then those of b. Merge in the order in which the data is read.
    """

    merges_exactly = False
    _option_names = (*MinMaxCalibrator._option_names, "averaging_constant")

    def __init__(
        self,
        num_bits: int | tuple[int, int] = 8,
        axis: int | tuple[int, ...] | None = None,
        unsigned: bool = False,
        averaging_constant: float = 0.01,
        symmetric: bool = False,
    ) -> None:
        super().__init__(num_bits, axis, unsigned, symmetric)
        if not 0 < averaging_constant <= 1:
            raise RangeError(f"averaging_constant must be more than 0 and at most 1, got {averaging_constant}")
        self.averaging_constant = averaging_constant
        self._batches = 0
        self._first: tuple[Tensor, Tensor] | None = None

    def _update(self, low: Tensor, high: Tensor) -> None:
        self._batches += 1
        if self._low is None or self._high is None:
            self._low, self._high = self._first = low, high
            return
        self._low = self._low + self.averaging_constant * (low - self._low)
        self._high = self._high + self.averaging_constant * (high - self._high)

    def _merge_state(self, other: Self, low: Tensor, high: Tensor) -> None:
        if self._low is None or self._high is None or other._first is None:
            self._low, self._high, self._first, self._batches = low, high, other._first, other._batches
            return
        # Had other not started from its own first batch x but from this average m, it would differ by
        # (1 - c)^n * (m - x) after its n batches.
        kept = (1 - self.averaging_constant) ** other._batches
        first_low, first_high = (first.to(low.device) for first in other._first)
        self._low = low + kept * (self._low - first_low)
        self._high = high + kept * (self._high - first_high)
        self._batches += other._batches

    def _observed(self) -> dict[str, Tensor]:
        first_low, first_high = self._first or (None, None)
        first = {"first_low": or_nothing(first_low), "first_high": or_nothing(first_high)}
        return {**super()._observed(), **first, "batches": torch.tensor(self._batches, device="cpu")}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        super()._restore(state)
        for name in ("first_low", "first_high"):
            check_tensor(name, state[name], torch.float32, state["low"].shape)
        check_tensor("batches", state["batches"], torch.int64, ())
        self._batches = int(state["batches"])
        self._first = None if self._low is None else (state["first_low"], state["first_high"])

    def _not_finite(self, low: Tensor) -> str:
        return "NaN or infinity"  # the average of an infinity and a number is NaN

    def reset(self) -> None:
        """Forget every batch."""
        super().reset()
        self._batches, self._first = 0, None
