"""_Calibrator: the base for calibrators of one's own, under pytorch-quantization's names."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor

from fxq.calib import Calibrator
from fxq.errors import CalibrationError


class _Calibrator(Calibrator):
    """Subclass it with ``collect``, ``reset`` and ``compute_amax``."""

    def __init__(self, num_bits: int | tuple[int, int], axis: int | tuple[int, ...] | None, unsigned: bool) -> None:
        super().__init__(num_bits, axis, unsigned)
        self._num_bits, self._axis, self._unsigned = num_bits, axis, unsigned

    @abstractmethod
    def collect(self, x: Tensor) -> None:
        """Look at one batch; fxq calls it ``observe``."""

    @abstractmethod
    def compute_amax(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Return the largest |x| to represent, None when nothing was collected; fxq calls it ``fit``."""

    def observe(self, x: Tensor) -> None:
        self.collect(x)

    def fit(self, method: str | None = None, **options: Any) -> tuple[Tensor, Tensor] | None:
        amax = self.compute_amax(method, **options)
        return None if amax is None else self._bounds(amax, amax)

    def merge(self, other: Self) -> None:
        raise CalibrationError(f"a {type(self).__name__} does not merge: define merge(), or collect all data in one")

    def _observed(self) -> dict[str, Tensor]:
        raise CalibrationError(f"a {type(self).__name__} has no state: define state() and from_state()")

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        raise CalibrationError(f"a {type(self).__name__} has no state: define state() and from_state()")

    def _seen(self) -> str:
        return "of your own"
