"""_Calibrator: the base for calibrators of one's own."""

from typing import Self

from torch import Tensor

from fxq.calib import Calibrator
from fxq.errors import CalibrationError


class _Calibrator(Calibrator):
    """Subclass it with ``collect``, ``reset`` and ``compute_amax``."""

    def __init__(self, num_bits: int | tuple[int, int], axis: int | tuple[int, ...] | None, unsigned: bool) -> None:
        super().__init__(num_bits, axis, unsigned)
        self._num_bits, self._axis, self._unsigned = num_bits, axis, unsigned

    def merge(self, other: Self) -> None:
        raise CalibrationError(f"a {type(self).__name__} does not merge: define merge(), or collect all data in one")

    def _fit(self, method: str | None, percentile: float, stride: int, start_bin: int) -> tuple[Tensor, Tensor] | None:
        return None  # what a subclass answers, its compute_amax says

    def _seen(self) -> str:
        return "of your own"
