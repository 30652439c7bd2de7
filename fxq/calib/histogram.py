"""HistogramCalibrator: one exact streaming histogram that serves every fitting method.

The first batch that is not all zero sets ``num_bins`` bins over [0, max |x|] (affine: over [min(x, 0), max(x, 0)]); a
later batch with larger values adds whole bins of the same width, so counts never shift. The counting rule is in
``bins.py``. Exact minimum and maximum are kept too, so method "max" is exact.

Two calibrators that saw halves of the data merge to exactly what one that saw everything holds if their first batches
agree in range (or one is a power of two of the other), up to the width of the bins. Otherwise the wider bins of the
two are kept and a bin edge can be off by half a narrow bin; minimum and maximum stay exact.

Source: pytorch-quantization 2.2 (first range, growth), without its float32 counts and its crash on zeros.
"""

import math
from typing import Self

import torch
from torch import Tensor

from fxq.calib.base import Calibrator, not_finite_error
from fxq.calib.bins import MAX_BINS, Bins
from fxq.calib.closed_end import ClosedEnd
from fxq.calib.fit_entropy import fit_entropy, fit_entropy_affine
from fxq.calib.fit_mse import fit_mse, fit_mse_affine
from fxq.calib.fit_percentile import checked_share, fit_percentile, fit_percentile_affine
from fxq.calib.minmax import flat_view
from fxq.errors import CalibrationError, DescriptorError

METHODS = ("max", "percentile", "mse", "entropy")
DEFAULT_METHOD = "percentile"


class HistogramCalibrator(Calibrator):
    """Counts |x| (affine: x) in equal bins; per tensor only.

    Args:
        num_bits, axis, unsigned, symmetric: those of :class:`Calibrator`; ``axis`` must be None.
        num_bins: bins over the range of the first batch.
        grow_method: None or "append", the only way the histogram grows; kept for pytorch-quantization's callers.
        skip_zeros: do not count exact zeros.

    Raises:
        DescriptorError: ``axis`` is not None, or another value is out of range.
    """

    def __init__(  # noqa: PLR0913 - pytorch-quantization's arguments in its order
        self,
        num_bits: int | tuple[int, int] = 8,
        axis: int | tuple[int, ...] | None = None,
        unsigned: bool = False,
        num_bins: int = 2048,
        grow_method: str | None = None,
        skip_zeros: bool = False,
        symmetric: bool = True,
    ) -> None:
        super().__init__(num_bits, axis, unsigned, symmetric)
        if axis is not None:
            raise DescriptorError(
                f"a histogram is per tensor, got axis={axis}: use axis=None, or a MaxCalibrator per channel"
            )
        if grow_method not in (None, "append"):
            raise DescriptorError(f"grow_method {grow_method!r} does not exist: a histogram grows by 'append'")
        if not 2 <= num_bins <= MAX_BINS // 4:
            raise DescriptorError(f"num_bins must be from 2 to {MAX_BINS // 4}, got {num_bins}")
        self.num_bins = num_bins
        self.skip_zeros = skip_zeros
        self.reset()

    def reset(self) -> None:
        """Forget every batch."""
        self._bins: Bins | None = None
        self._first_end = 0  # number of the bin behind the first range
        self._closed: ClosedEnd | None = None  # known once a symmetric range has grown
        self._low, self._high = math.inf, -math.inf
        self._early_zeros = 0  # seen before the first range was known
        self._device = torch.device("cpu")

    @property
    def counts(self) -> Tensor | None:
        """Count of each bin, int64 on the CPU, shape (bins,); None before the first value that is not 0."""
        return None if self._bins is None else self._histogram(self._bins)[0]

    @property
    def edges(self) -> Tensor | None:
        """Edges of the bins, float64 on the CPU, shape (bins + 1,); None before the first value that is not 0."""
        return None if self._bins is None else self._histogram(self._bins)[1]

    @torch.no_grad()
    def collect(self, x: Tensor) -> None:
        """Look at one batch. An empty tensor is ignored.

        Raises:
            CalibrationError: x holds NaN or infinity; then the batch leaves no trace.
        """
        if x.numel() == 0:
            return
        values = flat_view(x)
        low, high = torch.stack(torch.aminmax(values)).float().tolist()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise not_finite_error("NaN" if math.isnan(low) else "infinity")
        self._low, self._high, self._device = min(low, self._low), max(high, self._high), x.device
        if low == high == 0 and self._bins is None:
            self._early_zeros += 0 if self.skip_zeros else values.numel()
            return
        self._bins = self._widened(x.device).counted(values, self.symmetric and low < 0, self.skip_zeros)

    def _widened(self, device: torch.device) -> Bins:
        """Return bins that hold everything seen, with the zeros that came before them."""
        span = self._span()
        if self._bins is None:
            bins = Bins.over(*span, self.num_bins, device).with_zeros(self._early_zeros)
            self._early_zeros, self._first_end = 0, len(bins.over_range(*span, self.num_bins)[0])
            return bins
        bins = self._bins.widened(*span)
        if self.symmetric and self._closed is None and len(bins.counts) > len(self._bins.counts):
            self._closed = ClosedEnd.of(self._bins, self._first_end)
        return bins

    def _histogram(self, bins: Bins) -> tuple[Tensor, Tensor]:
        """Return counts and edges of the bins that the range needs, on the CPU."""
        counts, edges = bins.over_range(*self._span(), self.num_bins)
        return (counts if self._closed is None else self._closed.applied(counts, bins.width)), edges

    def _span(self) -> tuple[float, float]:
        """Return the range that the bins cover; it holds 0."""
        if self.symmetric:
            return 0.0, max(-self._low, self._high)
        return min(self._low, 0.0), max(self._high, 0.0)

    def merge(self, other: Self) -> None:
        """Take in what ``other`` saw; see the module's text for when that is exact.

        Raises:
            CalibrationError: ``other`` is of another kind or has other options.
        """
        self._check_mergeable(other)
        if other._low > other._high:
            return
        if self._low > self._high:
            self._device = other._device
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)
        if self._bins is None:
            self._bins, self._first_end, self._closed = other._bins, other._first_end, other._closed
        elif other._bins is not None:
            self._merge_bins(self._bins, other, other._bins)
        self._early_zeros += other._early_zeros
        if self._bins is not None:
            self._bins = self._bins.with_zeros(self._early_zeros)
            self._early_zeros = 0

    def _merge_bins(self, bins: Bins, other: Self, others: Bins) -> None:
        merged = bins.merged(others)
        mine, theirs = self._closed_in(merged), other._closed_in(merged)
        if mine is not None and theirs is not None:
            # Once grown, later batches have no closed end.
            mine = mine if self._closed is not None else mine.joined(theirs)
        if merged.width != bins.width:
            self._first_end = other._first_end
        self._bins, self._closed = merged, mine or theirs

    def _closed_in(self, merged: Bins) -> ClosedEnd | None:
        """Return the closed end of the first range if ``merged``, which holds it, has grown beyond it."""
        if self._bins is None or not self.symmetric or self._bins.width != merged.width:
            return None
        if self._closed is None and len(merged.counts) > len(self._bins.counts):
            return ClosedEnd.of(self._bins, self._first_end)
        return self._closed

    def _fit(self, method: str | None, percentile: float, stride: int, start_bin: int) -> tuple[Tensor, Tensor] | None:
        method = method or DEFAULT_METHOD
        if method not in METHODS:
            raise CalibrationError(f"unknown calibration method {method!r}; choose one of {', '.join(METHODS)}")
        if method == "percentile":
            checked_share(percentile)  # a mistake is one whether or not there is data
        if self._low > self._high:
            return None
        low, high = self._fit_bounds(method, percentile, stride, start_bin)
        as_tensor = torch.tensor((low, high), dtype=torch.float32, device=self._device)
        return as_tensor[0], as_tensor[1]

    def _fit_bounds(self, method: str, percentile: float, stride: int, start_bin: int) -> tuple[float, float]:
        if self._bins is None:
            return 0.0, 0.0
        if method == "max":
            return self._span()
        counts, edges = self._histogram(self._bins)
        if method == "percentile":
            if self.symmetric:
                return 0.0, fit_percentile(counts, edges, percentile)
            return fit_percentile_affine(counts, edges, percentile)
        if method == "mse" and self.symmetric:
            return 0.0, fit_mse(counts, edges, self.num_bits, self.unsigned, stride, start_bin)
        if isinstance(self.num_bits, tuple):
            raise CalibrationError(
                "entropy merges bins into equal groups, one for each integer code, and float8 codes are not equally "
                "far apart: use method 'mse', 'percentile' or 'max'"
            )
        search = (self.num_bits, self.unsigned, stride, start_bin)
        if self.symmetric:
            return 0.0, fit_entropy(counts, edges, *search)
        return (fit_mse_affine if method == "mse" else fit_entropy_affine)(counts, edges, *search)

    def _options(self) -> dict[str, object]:
        return {**super()._options(), "num_bins": self.num_bins, "skip_zeros": self.skip_zeros}

    def _seen(self) -> str:
        if self._low > self._high:
            return "saw nothing"
        return f"saw {self._low:.4g} to {self._high:.4g}"
