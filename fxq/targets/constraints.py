"""Constraints: what a runtime demands of the ranges of several tensors. ``solve_scales`` fulfils them."""

from collections.abc import Iterable
from dataclasses import dataclass

from fxq.errors import TargetError
from fxq.quant.descriptor import QuantDescriptor
from fxq.targets.op_rule import as_kinds


@dataclass(frozen=True)
class Same:
    """Tensors of an operation that share one range, since no kernel rescales between them.

    An operation with one input only moves data then: a planned output of the producer is carried across it.

    Args:
        kinds: a word of :mod:`fxq.kinds`, or several.
        slots: "inputs" (all tensors that it reads), "output", or both.
    """

    kinds: str | Iterable[str]
    slots: tuple[str, ...] = ("inputs", "output")

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", as_kinds(self.kinds))
        object.__setattr__(self, "slots", as_kinds(self.slots))


@dataclass(frozen=True)
class Fixed:
    """The output of an operation has the range [low, high], whatever the data.

    Args:
        kinds: a word of :mod:`fxq.kinds`, or several.
        low, high: the lowest and highest value that a code stands for: with n codes from 0, a step of 1/256 is
            low = 0, high = 255/256.
    """

    kinds: str | Iterable[str]
    low: float
    high: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", as_kinds(self.kinds))

    @property
    def reason(self) -> str:
        """What to say of a plan that gets the range."""
        return f"its range is always [{self.low:g}, {self.high:g}]"

    def applied(self, descriptor: QuantDescriptor) -> QuantDescriptor:
        """Return ``descriptor`` with the range fixed; a symmetric one takes the larger magnitude.

        Raises:
            TargetError: its codes start at 0 and ``low`` does not.
        """
        if descriptor.symmetric and descriptor.unsigned and self.low < 0:
            raise TargetError(f"codes of {descriptor} start at 0 and cannot hold {self.low:g}")
        if descriptor.symmetric:
            return descriptor.replace(amax=max(abs(self.low), abs(self.high)))
        return descriptor.replace(range=(self.low, self.high))


@dataclass(frozen=True)
class Derived:
    """The bias is an int32 tensor in steps of input step x weight step, with zero point 0.

    Args:
        kinds: "conv", "conv_transpose", "linear", or several: kinds whose inputs and weights are quantized.
    """

    kinds: str | Iterable[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", as_kinds(self.kinds))


Constraint = Same | Fixed | Derived
