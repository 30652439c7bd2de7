"""MaxCalibrator: fxq's, with the text of pytorch-quantization."""

from torch import Tensor

from fxq import calib
from fxq.compat.pytorch_quantization.calib.calibrator import _Calibrator


class MaxCalibrator(calib.MaxCalibrator):
    """Keeps the largest |x| over all dimensions not in ``axis``.

    Args:
        num_bits, axis, unsigned: how the tensor is quantized.
        track_amax: keep the amax of each batch in ``amaxs``.
    """

    def __init__(
        self,
        num_bits: int | tuple[int, int],
        axis: int | tuple[int, ...] | None,
        unsigned: bool,
        track_amax: bool = False,
    ) -> None:
        super().__init__(num_bits, axis, unsigned, track_amax)

    @property
    def _calib_amax(self) -> Tensor | None:
        return self.compute_amax()

    def __str__(self) -> str:
        return f"MaxCalibrator(track_amax={self.track_amax})"


_Calibrator.register(MaxCalibrator)
