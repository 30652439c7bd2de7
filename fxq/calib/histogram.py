"""HistogramCalibrator: one exact streaming histogram that serves every calibration method.

It holds the lowest and highest value, and counts on a grid that these two decide (``bins.py``): ``num_bins`` to twice
as many bins over the range, each a power of two wide. So calibrators that saw parts of the data, split and merged in
any way, hold exactly what one that saw everything holds. The bins of pytorch-quantization, which the first batch
decides, are in ``fxq.compat``.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from fxq.calib.base import Calibrator, not_finite_error
from fxq.calib.bins import Bins
from fxq.calib.minmax import flat_view
from fxq.calib.state import check_tensor
from fxq.errors import CalibrationError, DescriptorError, FxqError
from fxq.quant.registry import Fit, find_fit

DEFAULT_METHOD = "percentile"
MAX_NUM_BINS = 2**16
_NOTHING = (math.inf, -math.inf)  # lowest and highest of no values


@dataclass(frozen=True, eq=False)
class Histogram:
    """What a calibration method computes a range from.

    Args:
        counts: of |x|, or of x if not symmetric; int64 on the CPU, shape (bins,), not all zero.
        edges: of the bins, float64 on the CPU, shape (bins + 1,). One of them is 0.
        low, high: the lowest and highest value seen, and 0 is among them; symmetric: 0 and the largest |x|.
        num_bits: bits of the codes; (4, 3) for float8 e4m3.
        unsigned: the codes start at 0.
        symmetric: a range [-amax, amax] is wanted, or [0, amax] if unsigned; False for [low, high].
    """

    counts: Tensor
    edges: Tensor
    low: float
    high: float
    num_bits: int | tuple[int, int]
    unsigned: bool
    symmetric: bool


class HistogramCalibrator(Calibrator):
    """Counts |x| (affine: x) in equal bins; per tensor only.

    Args:
        num_bits, axis, unsigned, symmetric: those of :class:`Calibrator`; ``axis`` must be None.
        num_bins: least number of bins over the range; there are fewer than twice as many.
        skip_zeros: do not count exact zeros.

    Raises:
        DescriptorError: ``axis`` is not None, or another value is out of range.
    """

    _option_names = (*Calibrator._option_names, "num_bins", "skip_zeros")

    def __init__(
        self,
        num_bits: int | tuple[int, int] = 8,
        axis: int | tuple[int, ...] | None = None,
        unsigned: bool = False,
        num_bins: int = 2048,
        skip_zeros: bool = False,
        symmetric: bool = True,
    ) -> None:
        super().__init__(num_bits, axis, unsigned, symmetric)
        if axis is not None:
            raise DescriptorError(
                f"a histogram is per tensor, got axis={axis}: use axis=None, or a MaxCalibrator per channel"
            )
        if not isinstance(num_bins, int) or not 2 <= num_bins <= MAX_NUM_BINS:
            raise DescriptorError(f"num_bins must be from 2 to {MAX_NUM_BINS}, got {num_bins}")
        if not isinstance(skip_zeros, bool):
            raise DescriptorError(f"skip_zeros must be True or False, got {skip_zeros!r}")
        self.num_bins = num_bins
        self.skip_zeros = skip_zeros
        self.reset()

    def reset(self) -> None:
        """Forget every batch."""
        self._low, self._high = _NOTHING
        self._bins = self._empty_bins(torch.device("cpu"))

    @property
    def counts(self) -> Tensor | None:
        """Count of each bin, int64 on the CPU, shape (bins,); None before the first value that is not 0."""
        histogram = self._histogram()
        return None if histogram is None else histogram.counts

    @property
    def edges(self) -> Tensor | None:
        """Edges of the bins, float64 on the CPU, shape (bins + 1,); None before the first value that is not 0."""
        histogram = self._histogram()
        return None if histogram is None else histogram.edges

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take a batch in. An empty tensor is ignored.

        Raises:
            CalibrationError: x holds NaN or infinity; then the batch leaves no trace.
        """
        if x.numel() == 0:
            return
        values = flat_view(x)
        low, high = finite_extremes(values)
        self._low, self._high = min(low, self._low), max(high, self._high)
        bins = self._empty_bins(x.device).with_bins(self._bins)
        self._bins = bins.with_values(values, self.symmetric and low < 0, self.skip_zeros)

    def merge(self, other: Self) -> None:
        """Take in what ``other`` saw: exactly what one calibrator over all batches would hold.

        Raises:
            CalibrationError: ``other`` is of another kind or has other options.
        """
        self._check_mergeable(other)
        device = (self if self._has_seen else other)._device
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)
        self._bins = self._empty_bins(device).with_bins(self._bins).with_bins(other._bins)

    def fit(self, method: str | None = None, **options: Any) -> tuple[Tensor, Tensor] | None:
        """Return low and high by any of :func:`fxq.calib.fit_names`; "percentile" if none is named.

        Raises:
            CalibrationError: there is no such method, it has no such option, or it finds no range.
            RangeError: an option is out of range.
        """
        name = method or DEFAULT_METHOD
        fit = find_fit(name)
        known = list(inspect.signature(fit).parameters)[1:]
        for option in options:
            if option not in known:
                raise CalibrationError(
                    f"method {name!r} has no option {option!r}; its options: {', '.join(known) or 'none'}"
                )
        if not self._has_seen:
            return None
        histogram = self._histogram()
        low, high = (0.0, 0.0) if histogram is None else _found_by(name, fit, histogram, options)
        as_tensor = torch.tensor((low, high), dtype=torch.float32, device=self._device)
        return self._bounds(as_tensor[0], as_tensor[1])

    @property
    def _has_seen(self) -> bool:
        return self._low <= self._high

    @property
    def _device(self) -> torch.device:
        return self._bins.counts.device

    def _span(self) -> tuple[float, float]:
        """Return the range that the bins cover; it holds 0."""
        if not self._has_seen:
            return 0.0, 0.0
        if self.symmetric:
            return 0.0, max(-self._low, self._high)
        return min(self._low, 0.0), max(self._high, 0.0)

    def _empty_bins(self, device: torch.device) -> Bins:
        return Bins.over(*self._span(), self.num_bins, device)

    def _histogram(self) -> Histogram | None:
        """Return what was counted, None where all values are 0."""
        low, high = self._span()
        if low == high:
            return None
        counts, edges = self._bins.over_range(low, high, self.num_bins)
        return Histogram(counts, edges, low, high, self.num_bits, self.unsigned, self.symmetric)

    def _observed(self) -> dict[str, Tensor]:
        return {
            "low": torch.tensor(self._low, dtype=torch.float32, device="cpu"),
            "high": torch.tensor(self._high, dtype=torch.float32, device="cpu"),
            "counts": self._bins.counts,
        }

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        low, high, counts = state["low"], state["high"], state["counts"]
        check_tensor("low", low, torch.float32, ())
        check_tensor("high", high, torch.float32, ())
        self._low, self._high = float(low), float(high)
        if not (self._low, self._high) == _NOTHING and not -math.inf < self._low <= self._high < math.inf:
            raise CalibrationError(f"'low' and 'high' of a calibrator's state are {low} and {high}: that is no range")
        bins = self._empty_bins(counts.device)
        check_tensor("counts", counts, torch.int64, bins.counts.shape)
        self._bins = Bins(bins.width, bins.first, counts)

    def _seen(self) -> str:
        return f"saw {self._low:.4g} to {self._high:.4g}" if self._has_seen else "saw nothing"


def _found_by(name: str, fit: Fit, histogram: Histogram, options: Mapping[str, Any]) -> tuple[float, float]:
    """Return low and high by a method, which may be anybody's.

    Raises:
        CalibrationError: it fails, or returns no range.
    """
    try:
        found = fit(histogram, **options)
    except (FxqError, TypeError):  # TypeError: an option of another type
        raise
    except Exception as error:
        raise CalibrationError(f"method {name!r} failed: {type(error).__name__}: {error}") from error
    try:
        low, high = map(float, found)
    except (TypeError, ValueError) as error:
        raise CalibrationError(
            f"method {name!r} returned {found!r}; it must return two numbers, low and high"
        ) from error
    least = 0.0 if histogram.symmetric else low
    if not (math.isfinite(low) and least <= high < math.inf):
        wanted = "high, which is amax, must not be negative" if histogram.symmetric else "low must not exceed high"
        raise CalibrationError(
            f"method {name!r} returned low {low:g} and high {high:g}: both must be finite, and {wanted}"
        )
    return low, high


def finite_extremes(values: Tensor) -> tuple[float, float]:
    """Return the lowest and highest of the values, as float32 knows them.

    Raises:
        CalibrationError: one is NaN or infinite.
    """
    low, high = torch.stack(torch.aminmax(values)).float().tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise not_finite_error("NaN" if math.isnan(low) else "infinity")
    return low, high
