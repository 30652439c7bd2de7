"""MinMaxCalibrator: running minimum and maximum, per tensor or per channel.

State: ``low = min(low, min(x))`` and ``high = max(high, max(x))``. No copy of x is made and nothing waits for the
device: NaN passes through both and is found when the range is fitted. Merging is exact in any order.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from fxq.calib.base import Calibrator, not_finite_error
from fxq.calib.state import check_tensor, or_nothing
from fxq.errors import CalibrationError, DescriptorError


class MinMaxCalibrator(Calibrator):
    """Keeps the lowest and highest value over all dimensions not in ``axis``; affine by default.

    Args: those of :class:`Calibrator`.
    """

    def __init__(
        self,
        num_bits: int | tuple[int, int] = 8,
        axis: int | tuple[int, ...] | None = None,
        unsigned: bool = False,
        symmetric: bool = False,
    ) -> None:
        super().__init__(num_bits, axis, unsigned, symmetric)
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take a batch in. An empty tensor is ignored.

        Raises:
            CalibrationError: the kept dimensions have another size than before.
            DescriptorError: ``axis`` names a dimension that x does not have.
        """
        if x.numel() == 0:
            return
        low, high = self._measured(x)
        if self._low is not None and self._low.shape != low.shape:
            raise CalibrationError(
                f"amax shape changed from {tuple(self._low.shape)} to {tuple(low.shape)}: a tensor calibrated along "
                f"axis {self.axis} must keep its size there; use axis=None or feed inputs of one size"
            )
        self._update(low, high)

    def _measured(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return lowest_and_highest(x, self._descriptor.axes)

    def _update(self, low: Tensor, high: Tensor) -> None:
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)

    def merge(self, other: Self) -> None:
        """Take in what ``other`` saw: exactly what one calibrator over all batches would hold.

        Raises:
            CalibrationError: ``other`` is of another kind, has other options, or another shape.
        """
        self._check_mergeable(other)
        if other._low is None or other._high is None:
            return
        low, high = other._low, other._high
        if self._low is not None:
            low, high = low.to(self._low.device), high.to(self._low.device)
            if low.shape != self._low.shape:
                raise CalibrationError(
                    f"cannot merge ranges of shape {tuple(self._low.shape)} and {tuple(low.shape)}: "
                    "both calibrators must have watched the same tensor"
                )
        self._merge_state(other, low, high)

    def _merge_state(self, other: Self, low: Tensor, high: Tensor) -> None:
        self._update(low, high)

    def reset(self) -> None:
        """Forget every batch."""
        self._low = self._high = None

    def fit(self, method: str | None = None, **options: Any) -> tuple[Tensor, Tensor] | None:
        """Return low and high; the only method is "max", and it has no options.

        Raises:
            CalibrationError: NaN or infinity was observed, or another method or an option was given.
        """
        if method not in (None, "max"):
            raise CalibrationError(
                f"{type(self).__name__} cannot fit by {method!r}: only a histogram can; use HistogramCalibrator, "
                f'or the descriptor calibrator "histogram", "percentile", "mse" or "entropy"'
            )
        if options:
            raise CalibrationError(f"{type(self).__name__} has no option {', '.join(options)}: it fits its extremes")
        if self._low is None or self._high is None:
            return None
        if not bool(torch.isfinite(self._low).all() and torch.isfinite(self._high).all()):
            raise not_finite_error(self._not_finite(self._low))
        high = torch.maximum(self._low.abs(), self._high.abs()) if self.symmetric else self._high
        return self._bounds(self._low, high)

    def _observed(self) -> dict[str, Tensor]:
        return {"low": or_nothing(self._low), "high": or_nothing(self._high)}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        low, high = state["low"], state["high"]
        check_tensor("low", low, torch.float32)
        if low.numel() and not self._descriptor.axes:
            check_tensor("low", low, torch.float32, ())
        check_tensor("high", high, torch.float32, low.shape)
        self._low, self._high = (low, high) if low.numel() else (None, None)

    def _not_finite(self, low: Tensor) -> str:
        return "NaN" if bool(low.isnan().any()) else "infinity"

    def _seen(self) -> str:
        if self._low is None or self._high is None:
            return "saw nothing"
        return f"saw {float(self._low.min()):.4g} to {float(self._high.max()):.4g}"


def lowest_and_highest(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum over all dimensions not in ``axes``, in float32; kept dimensions keep their place."""
    if not axes:
        low, high = torch.aminmax(flat_view(x))
        return low.float(), high.float()
    if any(not -x.dim() <= axis < x.dim() for axis in axes):
        raise DescriptorError(f"axis {axes} is out of range for a tensor of shape {tuple(x.shape)}")
    kept = {axis % x.dim() for axis in axes}
    reduced = tuple(dim for dim in range(x.dim()) if dim not in kept)
    if not reduced:  # amin over no dimensions would reduce them all
        return x.detach().float().clone(), x.detach().float().clone()
    return x.amin(reduced, keepdim=True).float(), x.amax(reduced, keepdim=True).float()


def flat_view(x: Tensor) -> Tensor:
    """Return the values of x in one dimension, in the order they lie in memory, so that channels_last is not copied."""
    return x.permute(sorted(range(x.dim()), key=x.stride, reverse=True)).reshape(-1)
