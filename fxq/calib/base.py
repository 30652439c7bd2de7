"""Calibrator: watches batches of one tensor and then says which range to quantize.

A calibrator streams: ``collect`` keeps a state of constant size, on the data's device, and the range is computed from
that state alone. Two calibrators of the same kind merge.
"""

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from fxq.errors import CalibrationError
from fxq.quant.descriptor import QuantDescriptor


class Calibrator(ABC):
    """Base of the calibrators.

    Args:
        num_bits: 2 to 16, or (4, 3) for float8 e4m3; the methods that weigh rounding error (mse, entropy) need it.
        axis: dimensions that KEEP their own range (negative allowed), None for one range for the tensor.
        unsigned: codes start at 0, so a symmetric range is [0, amax].
        symmetric: fit [-amax, amax]; False fits [low, high].

    Raises:
        DescriptorError: a value is out of range.
    """

    def __init__(
        self,
        num_bits: int | tuple[int, int] = 8,
        axis: int | tuple[int, ...] | None = None,
        unsigned: bool = False,
        symmetric: bool = True,
    ) -> None:
        # The descriptor knows which values are valid.
        self._descriptor = QuantDescriptor(num_bits=num_bits, axis=axis, unsigned=unsigned, symmetric=symmetric)

    @property
    def num_bits(self) -> int | tuple[int, int]:
        """Bits of the codes; (4, 3) for float8 e4m3."""
        return self._descriptor.num_bits

    @property
    def axis(self) -> int | tuple[int, ...] | None:
        """Dimensions that keep their own range."""
        return self._descriptor.axis

    @property
    def unsigned(self) -> bool:
        """Whether the codes start at 0."""
        return self._descriptor.unsigned

    @property
    def symmetric(self) -> bool:
        """Whether the range is [-amax, amax] (or [0, amax]) and not [low, high]."""
        return self._descriptor.symmetric

    @abstractmethod
    def collect(self, x: Tensor) -> None:
        """Look at one batch. An empty tensor is ignored."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in what ``other`` saw, as if its batches had come after this calibrator's; ``other`` is unchanged.

        Raises:
            CalibrationError: ``other`` is of another kind or was made with other options.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget every batch."""

    @abstractmethod
    def _fit(self, method: str | None, percentile: float, stride: int, start_bin: int) -> tuple[Tensor, Tensor] | None:
        """Return low and high; for a symmetric calibrator high is amax and low is not looked at."""

    def compute_amax(
        self, method: str | None = None, percentile: float = 99.99, stride: int = 1, start_bin: int = 128
    ) -> Tensor | None:
        """Return the largest |x| to represent, float32, or None when nothing was collected.

        Args:
            method: "max", or for a HistogramCalibrator also "percentile" (its default), "mse" or "entropy".
            percentile: the share of the values, in percent, that the range must hold (method "percentile").
            stride: every how many bins a candidate lies (methods "mse" and "entropy").
            start_bin: the narrowest candidate, in bins (methods "mse" and "entropy").

        Returns:
            Shape () per tensor; with an axis the kept dimensions keep their size and the others have size 1.

        Raises:
            CalibrationError: NaN or infinity was collected, or this calibrator cannot use ``method``.
            RangeError: ``percentile``, ``stride`` or ``start_bin`` is out of range.
        """
        bounds = self._fit(method, percentile, stride, start_bin)
        if bounds is None:
            return None
        low, high = bounds
        # clone: what was made under inference_mode could not be saved for a backward pass later.
        return (high if self.symmetric else torch.maximum(low.abs(), high.abs())).clone()

    def compute_range(
        self, method: str | None = None, percentile: float = 99.99, stride: int = 1, start_bin: int = 128
    ) -> tuple[Tensor, Tensor] | None:
        """Return the lowest and highest x to represent, or None when nothing was collected.

        A symmetric calibrator returns (-amax, amax), or (0, amax) if unsigned. Arguments, shapes and errors are those
        of :meth:`compute_amax`. The range need not hold 0: ``affine_params`` widens it.
        """
        bounds = self._fit(method, percentile, stride, start_bin)
        if bounds is None:
            return None
        low, high = bounds
        if self.symmetric:
            low = torch.zeros_like(high) if self.unsigned else -high
        return low.clone(), high.clone()

    def _options(self) -> dict[str, object]:
        return {
            "num_bits": self.num_bits,
            "axis": self.axis,
            "unsigned": self.unsigned,
            "symmetric": self.symmetric,
        }

    def _check_mergeable(self, other: "Calibrator") -> None:
        if type(other) is not type(self):
            raise CalibrationError(f"cannot merge a {type(other).__name__} into a {type(self).__name__}")
        mine, theirs = self._options(), other._options()
        for name, value in mine.items():
            if theirs[name] != value:
                raise CalibrationError(
                    f"cannot merge calibrators with {name}={value} and {name}={theirs[name]}: make both alike"
                )

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self._options().items())
        return f"{type(self).__name__}({options}, {self._seen()})"

    @abstractmethod
    def _seen(self) -> str:
        """Say in a few words what was collected."""


def not_finite_error(seen: str) -> CalibrationError:
    """Return the error for a tensor that holds NaN or infinity; the caller adds whose tensor it is."""
    return CalibrationError(
        f"the tensor holds {seen}, so it has no range: look for a layer before it that overflows or divides by 0, "
        "leave out the batch that does it, or calibrate in float32"
    )
