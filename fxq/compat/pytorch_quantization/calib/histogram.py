"""HistogramCalibrator and calibrate_weights: the histograms of pytorch-quantization, with their bins and numbers.

The first batch that is not all zero sets ``num_bins`` bins over [0, max |x|]; a later one with larger values adds
whole bins of the same width. As in torch.histc the last bin of each batch's histogram includes its right edge. The
bins depend on which batch came first, so two such histograms do not merge; fxq's own do.

Source: pytorch-quantization 2.2, without its float32 counts and its crash on zeros.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from fxq import calib
from fxq.calib.bins import count_values
from fxq.calib.fits.percentile import checked_share
from fxq.calib.histogram import DEFAULT_METHOD, finite_extremes
from fxq.calib.minmax import flat_view
from fxq.calib.state import check_tensor
from fxq.calib.weights import fit_channels
from fxq.compat.pytorch_quantization.calib.calibrator import _Calibrator
from fxq.errors import CalibrationError, InputError
from fxq.nn import TensorQuantizer
from fxq.quant.registry import fit_names, is_fit

# 128 times the range of the first batch at 2048 bins; beyond it, pairs of bins are joined to bound memory and time.
MAX_BINS = 2**18
SMALLEST_WIDTH = 2.0**-126  # the smallest normal float32: a subnormal width would lose its digits
_logger = logging.getLogger(__name__)


class HistogramCalibrator(calib.HistogramCalibrator):
    """Counts |x| in equal bins, once for all methods of ``compute_amax``; per tensor only.

    Args:
        num_bits, axis, unsigned: how the tensor is quantized; ``axis`` must be None.
        num_bins: bins over the range of the first batch.
        grow_method: without effect, as in the original: a histogram grows by bins of the same width.
        skip_zeros: do not count exact zeros.
        torch_hist: whether ``_calib_hist`` and ``_calib_bin_edges`` are tensors, and not arrays.

    Raises:
        DescriptorError: ``axis`` is not None, or another value is out of range.
    """

    _option_names = ("num_bits", "axis", "unsigned", "num_bins", "skip_zeros", "torch_hist")

    def __init__(  # noqa: PLR0913 - the original's arguments
        self,
        num_bits: int | tuple[int, int],
        axis: int | tuple[int, ...] | None,
        unsigned: bool,
        num_bins: int = 2048,
        grow_method: str | None = None,
        skip_zeros: bool = False,
        torch_hist: bool = True,
    ) -> None:
        super().__init__(num_bits, axis, unsigned, num_bins, skip_zeros)
        self.torch_hist = torch_hist
        if grow_method is not None:
            _logger.warning("grow_method is deprecated. Got %s, ignored!", grow_method)

    def reset(self) -> None:
        """Forget every batch."""
        self._low, self._high = math.inf, -math.inf
        self._width = 0.0  # until there is a value that is not 0
        self._counts = torch.zeros(self.num_bins, dtype=torch.int64)

    @torch.no_grad()
    def collect(self, x: Tensor) -> None:
        """Look at one batch. An empty tensor is ignored; a subclass may override it.

        Raises:
            CalibrationError: x holds NaN or infinity; then the batch leaves no trace.
        """
        if x.numel() == 0:
            return
        values = flat_view(x)
        low, high = finite_extremes(values)
        self._low, self._high = min(low, self._low), max(high, self._high)
        self._widen()
        counts = self._counts.to(x.device, copy=True)
        if self._width:
            size = len(counts)
            new = count_values(values, self._width, 0, size + 1, absolute=low < 0)
            counts += new[:size]
            counts[-1] += new[size]  # values on the right edge
        else:
            counts[0] += values.numel()
        if self.skip_zeros:
            counts[0] -= values.numel() - torch.count_nonzero(values)
        self._counts = counts

    def compute_amax(
        self, method: str | None = None, percentile: float = 99.99, stride: int = 1, start_bin: int = 128
    ) -> Tensor | None:
        """Return the largest |x| to represent, None when nothing was collected; a subclass may override it.

        Args:
            method: "max", "percentile" (the default), "mse" or "entropy".
            percentile: the share of the values, in percent, that the range must hold (method "percentile").
            stride: every how many bins a candidate lies (methods "mse" and "entropy").
            start_bin: the narrowest candidate, in bins (methods "mse" and "entropy").

        Raises:
            InputError: the method does not exist.
            CalibrationError: NaN or infinity was collected.
            RangeError: an argument is out of range.
        """
        method = method or DEFAULT_METHOD
        if not is_fit(method):
            raise InputError(f"Unknown calibration method {method}: choose one of {', '.join(fit_names())}")
        options: dict[str, Any] = {}  # the original takes those of another method too
        if method == "percentile":
            checked_share(percentile)  # a mistake is one whether or not there is data
            options = {"percentile": percentile}
        elif method in ("mse", "entropy"):
            options = {"stride": stride, "start_bin": start_bin}
        bounds = super().fit(method, **options)
        return None if bounds is None else bounds[1]

    def observe(self, x: Tensor) -> None:
        """Look at one batch: fxq's name of :meth:`collect`."""
        self.collect(x)

    def fit(self, method: str | None = None, **options: Any) -> tuple[Tensor, Tensor] | None:
        """Return the range: fxq's name of :meth:`compute_amax`."""
        amax = self.compute_amax(method, **options)
        return None if amax is None else self._bounds(amax, amax)

    def merge(self, other: Self) -> None:
        """Refuse: the bins of two histograms differ."""
        raise CalibrationError(
            "histograms of pytorch-quantization have the bins of their first batches, so they do not merge: collect "
            "all data in one, or take fxq.calib.HistogramCalibrator"
        )

    @property
    def _device(self) -> torch.device:
        return self._counts.device

    def _widen(self) -> None:
        """Make room for everything seen."""
        top = self._span()[1]
        if self._width == 0 < top:
            self._width = float(np.float32(max(top / self.num_bins, SMALLEST_WIDTH)))
        while self._width and top / self._width > MAX_BINS:
            self._width *= 2
            self._counts = torch.nn.functional.pad(self._counts, (0, len(self._counts) % 2)).reshape(-1, 2).sum(1)
        if self._width:
            # The width was rounded to float32, so a range of exactly n bins may divide to a hair more.
            missing = math.ceil(top / self._width * (1 - 2**-23)) - len(self._counts)
            self._counts = torch.nn.functional.pad(self._counts, (0, max(missing, 0)))

    def _histogram(self) -> calib.Histogram | None:
        top = self._span()[1]
        if top == 0:
            return None
        edges = torch.arange(len(self._counts) + 1, dtype=torch.float64, device="cpu") * self._width
        edges[-1] = max(float(edges[-1]), top)
        return calib.Histogram(self._counts.cpu(), edges, 0.0, top, self.num_bits, self.unsigned, symmetric=True)

    def _observed(self) -> dict[str, Tensor]:
        low, high, width = torch.tensor((self._low, self._high, self._width))
        return {"low": low, "high": high, "width": width, "counts": self._counts}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        for name in ("low", "high", "width"):
            check_tensor(name, state[name], torch.float32, ())
        check_tensor("counts", state["counts"], torch.int64, (len(state["counts"]),))
        self._low, self._high, self._width = (float(state[name]) for name in ("low", "high", "width"))
        self._counts = state["counts"]

    @property
    def _calib_hist(self) -> Tensor | NDArray[np.generic] | None:
        return self._as_asked(self.counts)

    @property
    def _calib_bin_edges(self) -> Tensor | NDArray[np.generic] | None:
        return self._as_asked(self.edges)

    def _as_asked(self, tensor: Tensor | None) -> Tensor | NDArray[np.generic] | None:
        return tensor if self.torch_hist or tensor is None else tensor.numpy()

    def __str__(self) -> str:
        edges = self.edges
        text = "None" if edges is None else f"[{edges[0]:.3f}, ..., {edges[-1]:.3f}]({len(edges)})"
        return f"HistogramCalibrator(calib_bin_edges={text})"


_Calibrator.register(HistogramCalibrator)


def calibrate_weights(
    model: nn.Module,
    method: str = "percentile",
    perchannel: bool = True,
    percentile: float = 99.99,
    num_bins: int = 2048,
) -> None:
    """Store a range in the weight quantizer of each module that has ``weight`` and ``weight_quantizer``.

    Args:
        model: changed in place.
        method: "max", "percentile", "mse" or "entropy", whatever calibrator the quantizers have.
        perchannel: a range for each output channel, which is dimension 1 of a transposed convolution; False for one.
        percentile: of method "percentile".
        num_bins: bins of the histograms.

    Raises:
        InputError: the method does not exist.
        CalibrationError: a weight holds NaN or infinity.
    """
    if not is_fit(method):
        raise InputError(f"Unsupported calibration method {method}: choose one of {', '.join(fit_names())}")
    for path, module in model.named_modules():
        weight, quantizer = getattr(module, "weight", None), getattr(module, "weight_quantizer", None)
        if not isinstance(weight, Tensor) or not isinstance(quantizer, TensorQuantizer):
            continue
        axis = (1 if isinstance(module, _ConvTransposeNd) else 0) if perchannel else None
        try:
            quantizer.amax = _fit_weight(weight.detach(), axis, quantizer, (method, percentile, num_bins))
        except CalibrationError as error:
            raise CalibrationError(f"the weight of {path!r}: {error}") from error


def _fit_weight(weight: Tensor, axis: int | None, quantizer: TensorQuantizer, how: tuple[str, float, int]) -> Tensor:
    method, percentile, num_bins = how

    def fit(channel: Tensor) -> tuple[Tensor, ...]:
        calibrator = HistogramCalibrator(quantizer.num_bits, None, quantizer.unsigned, num_bins)
        calibrator.collect(channel)
        amax = calibrator.compute_amax(method, percentile)
        return (channel.new_zeros(()) if amax is None else amax,)

    return fit_channels(weight, axis, fit)[0]
