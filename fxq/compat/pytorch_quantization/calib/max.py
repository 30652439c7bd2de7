"""MaxCalibrator: fxq's, with the names and the text of pytorch-quantization."""

from typing import Any

from torch import Tensor

from fxq import calib
from fxq.compat.pytorch_quantization.calib.calibrator import _Calibrator


class MaxCalibrator(calib.MaxCalibrator):
    """Keeps the largest |x| over all dimensions not in ``axis``.

    Args:
        num_bits, axis, unsigned: how the tensor is quantized.
        track_amax: keep the amax of each batch in ``amaxs``.
    """

    _option_names = ("num_bits", "axis", "unsigned", "track_amax")

    def __init__(
        self,
        num_bits: int | tuple[int, int],
        axis: int | tuple[int, ...] | None,
        unsigned: bool,
        track_amax: bool = False,
    ) -> None:
        super().__init__(num_bits, axis, unsigned, track_amax)

    def collect(self, x: Tensor) -> None:
        """Look at one batch; a subclass may override it."""
        super().observe(x)

    def compute_amax(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Return the largest |x|, None when nothing was collected; a subclass may override it."""
        bounds = super().fit(*args, **kwargs)
        return None if bounds is None else bounds[1]

    def observe(self, x: Tensor) -> None:
        """Look at one batch: fxq's name of :meth:`collect`."""
        self.collect(x)

    def fit(self, method: str | None = None, **options: Any) -> tuple[Tensor, Tensor] | None:
        """Return the range: fxq's name of :meth:`compute_amax`."""
        amax = self.compute_amax(method, **options)
        return None if amax is None else self._bounds(amax, amax)

    @property
    def _calib_amax(self) -> Tensor | None:
        return self.compute_amax()

    def __str__(self) -> str:
        return f"MaxCalibrator(track_amax={self.track_amax})"


_Calibrator.register(MaxCalibrator)
