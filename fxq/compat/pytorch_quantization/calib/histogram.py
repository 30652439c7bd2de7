"""HistogramCalibrator: fxq's exact streaming histogram, with the arguments of pytorch-quantization."""

import logging

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fxq import calib
from fxq.calib.histogram import METHODS
from fxq.compat.pytorch_quantization.calib.calibrator import _Calibrator
from fxq.compat.pytorch_quantization.calib.weights import calibrate_weights
from fxq.errors import InputError

__all__ = ["HistogramCalibrator", "calibrate_weights"]

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
        super().__init__(num_bits, axis, unsigned, num_bins, skip_zeros=skip_zeros)
        self._torch_hist = torch_hist
        if grow_method is not None:
            _logger.warning("grow_method is deprecated. Got %s, ignored!", grow_method)

    def compute_amax(
        self, method: str | None = None, percentile: float = 99.99, stride: int = 1, start_bin: int = 128
    ) -> Tensor | None:
        """Return the largest |x| to represent, None when nothing was collected; arguments as in fxq.

        Raises:
            InputError: the method does not exist.
            CalibrationError: NaN or infinity was collected.
            RangeError: an argument is out of range.
        """
        if method is not None and method not in METHODS:
            raise InputError(f"Unknown calibration method {method}: choose one of {', '.join(METHODS)}")
        return super().compute_amax(method, percentile, stride, start_bin)

    @property
    def _calib_hist(self) -> Tensor | NDArray[np.generic] | None:
        return self._as_asked(self.counts)

    @property
    def _calib_bin_edges(self) -> Tensor | NDArray[np.generic] | None:
        return self._as_asked(self.edges)

    def _as_asked(self, tensor: Tensor | None) -> Tensor | NDArray[np.generic] | None:
        return tensor if self._torch_hist or tensor is None else tensor.numpy()

    def __str__(self) -> str:
        edges = self.edges
        text = "None" if edges is None else f"[{edges[0]:.3f}, ..., {edges[-1]:.3f}]({len(edges)})"
        return f"HistogramCalibrator(calib_bin_edges={text})"


_Calibrator.register(HistogramCalibrator)
