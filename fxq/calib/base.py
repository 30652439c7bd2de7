"""Calibrator: watches batches of one tensor and then says which range to quantize.

Three steps: ``observe`` takes a batch into a state of constant size on the data's device, ``merge`` takes in what
another calibrator saw, ``fit`` computes the range from the state alone. The state is plain tensors that can be stored
or sent.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from fxq.calib.state import OPTION, as_tensor, check_names, stored_options
from fxq.errors import CalibrationError, FxqError
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

    # The constructor's arguments, each an attribute too.
    _option_names: ClassVar[tuple[str, ...]] = ("num_bits", "axis", "unsigned", "symmetric")

    # Is merging exactly what one calibrator over all batches would hold, in any order?
    merges_exactly: ClassVar[bool] = True

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
    def observe(self, x: Tensor) -> None:
        """Take a batch in. An empty tensor is ignored."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in what ``other`` saw, as if its batches had come after this calibrator's; ``other`` is unchanged.

        Raises:
            CalibrationError: ``other`` is of another kind or was made with other options.
        """

    @abstractmethod
    def fit(self, method: str | None = None, **options: Any) -> tuple[Tensor, Tensor] | None:
        """Return the lowest and highest x to represent, float32, or None when nothing was observed.

        The range follows from the state alone. A symmetric calibrator returns (-amax, amax), or (0, amax) if unsigned.
        An affine range need not hold 0: ``affine_params`` widens it.

        Args:
            method: "max", or for a HistogramCalibrator any of :func:`fxq.calib.fit_names`.
            options: of the method, such as ``percentile``.

        Returns:
            Shape () per tensor; with an axis the kept dimensions keep their size and the others have size 1.

        Raises:
            CalibrationError: NaN or infinity was observed, this calibrator cannot use ``method``, or the method has no
                such option.
            RangeError: an option is out of range.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget every batch."""

    def collect(self, x: Tensor) -> None:
        """:meth:`observe`, as pytorch-quantization calls it."""
        self.observe(x)

    def compute_amax(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Return the largest magnitude of :meth:`fit`, as pytorch-quantization calls it; arguments are those of fit."""
        bounds = self.fit(*args, **kwargs)
        return None if bounds is None else torch.maximum(bounds[0].abs(), bounds[1].abs())

    def state(self) -> dict[str, Tensor]:
        """Return what was observed and the constructor's options, as plain tensors that share no memory with this.

        Options are encoded by :func:`fxq.calib.state.as_tensor` under ``option.NAME``, so that a state says what it
        is a state of.
        """
        options = {f"{OPTION}{name}": as_tensor(value) for name, value in self._options().items()}
        return options | {name: tensor.detach().clone() for name, tensor in self._observed().items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], **options: Any) -> Self:
        """Return a calibrator that observes, merges and fits on exactly as the one whose :meth:`state` this is.

        Args:
            state: of a calibrator of this class.
            options: constructor options that the state must have; the others are as in the state.

        Raises:
            CalibrationError: an entry is missing, unknown or of another shape, or an option has another value.
        """
        stored = stored_options(state, cls._option_names, cls.__name__)
        for name, value in options.items():
            if name not in stored or stored[name] != value:
                raise CalibrationError(
                    f"this state is of a {cls.__name__} with {name}={stored.get(name, 'no such option')}, and {name}="
                    f"{value} was asked for: make both alike"
                )
        try:
            calibrator = cls(**stored)
        except (FxqError, TypeError) as error:
            raise CalibrationError(f"this state has options that no {cls.__name__} has: {error}") from error
        observed = {name: tensor for name, tensor in state.items() if not name.startswith(OPTION)}
        check_names(observed, calibrator._observed(), cls.__name__)
        calibrator._restore({name: tensor.detach().clone() for name, tensor in observed.items()})
        return calibrator

    @abstractmethod
    def _observed(self) -> dict[str, Tensor]:
        """Return the part of the state that the batches make; the same names before the first batch too."""

    @abstractmethod
    def _restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`_observed` returned; CalibrationError where a tensor cannot be of this calibrator."""

    def _bounds(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the range as fit does; ``high`` is amax if symmetric, and ``low`` is not looked at."""
        if self.symmetric:
            low = torch.zeros_like(high) if self.unsigned else -high
        # clone: what was made under inference_mode could not be saved for a backward pass later.
        return low.clone(), high.clone()

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._option_names}

    def _check_mergeable(self, other: "Calibrator") -> None:
        if type(other) is not type(self):
            kind, others = (f"{one.__module__}.{one.__qualname__}" for one in (type(self), type(other)))
            raise CalibrationError(f"cannot merge a {others} into a {kind}")
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
        """Say in a few words what was observed."""


def not_finite_error(seen: str) -> CalibrationError:
    """Return the error for a tensor that holds NaN or infinity; the caller adds whose tensor it is."""
    return CalibrationError(
        f"the tensor holds {seen}, so it has no range: look for a layer before it that overflows or divides by 0, "
        "leave out the batch that does it, or calibrate in float32"
    )
