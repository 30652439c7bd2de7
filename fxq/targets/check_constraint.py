"""Whether a constraint of a target can be fulfilled."""

import difflib
from typing import TYPE_CHECKING, Any

from fxq.errors import TargetError
from fxq.kinds import check_kind
from fxq.quant.descriptor import QuantDescriptor, is_finite
from fxq.targets.constraints import Derived, Fixed, Same

if TYPE_CHECKING:
    from fxq.targets.target import Target

_TENSORS = ("inputs", "output")
# Layers that compute one function of an input, a weight and a bias.
_WITH_BIAS = ("conv", "conv_transpose", "linear")


def check_constraint(target: "Target", item: Any, where: str) -> None:
    """Raise a TargetError, which begins with ``where``, for a constraint that cannot be."""
    if not isinstance(item, Same | Fixed | Derived):
        raise TargetError(f"{where} must be a fxq.Same, fxq.Fixed or fxq.Derived, got {item!r}")
    if not item.kinds:
        raise TargetError(f'{where} names no kind: add kinds=("conv",)')
    for kind in item.kinds:
        check_kind(kind, f"{where}.kinds")
    if isinstance(item, Same):
        _check_same(target, item, where)
    elif isinstance(item, Fixed):
        _check_fixed(target, item, where)
    else:
        _check_derived(target, item, where)


def _check_same(target: "Target", item: Same, where: str) -> None:
    for slot in item.slots:
        if slot not in _TENSORS:
            close = difflib.get_close_matches(str(slot), _TENSORS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {' and '.join(_TENSORS)}"
            raise TargetError(f"{where}.slots: there is no slot {slot!r}; {hint}")
    if "inputs" not in item.slots:
        raise TargetError(
            f"{where}.slots: one tensor is the same as itself; name 'inputs', or 'inputs' and 'output', "
            f"got {', '.join(item.slots) or 'none'}"
        )
    for kind in item.kinds:
        others = [other for other in target.constraints if isinstance(other, Same) and kind in other.kinds]
        if any(set(other.slots) != set(item.slots) for other in others):
            raise TargetError(f"{where}: two Same name other slots of {kind!r}; make it one")


def _check_fixed(target: "Target", item: Fixed, where: str) -> None:
    for name in ("low", "high"):
        bound = getattr(item, name)
        if type(bound) not in (int, float) or not is_finite(bound):
            raise TargetError(f"{where}.{name} must be a finite number, got {bound!r}")
    if not item.low < item.high:
        raise TargetError(f"{where}: low {item.low:g} is not below high {item.high:g}")
    if not target.needs_data:
        raise TargetError(f"{where}: the target calibrates no activations, so there is no range to fix")
    for kind in item.kinds:
        descriptor = target.descriptor(kind, "output")
        if descriptor is not None:
            _check_applies(item, descriptor, where)
        other = target.fixed(kind)
        if other is not None and (other.low, other.high) != (item.low, item.high):
            raise TargetError(
                f"{where}: the output of {kind!r} is fixed to [{other.low:g}, {other.high:g}] and to "
                f"[{item.low:g}, {item.high:g}]"
            )


def _check_applies(item: Fixed, descriptor: QuantDescriptor, where: str) -> None:
    try:
        item.applied(descriptor)
    except TargetError as error:
        raise TargetError(f"{where}: {error}") from error


def _check_derived(target: "Target", item: Derived, where: str) -> None:
    for kind in item.kinds:
        if kind not in _WITH_BIAS:
            raise TargetError(f"{where}: a bias is derived for {', '.join(_WITH_BIAS)} only, got {kind!r}")
        missing = [
            slot
            for slot, is_there in (("inputs", target.quantizes_inputs(kind)), ("weight", target.stores_integers(kind)))
            if not is_there
        ]
        if missing:
            raise TargetError(
                f"{where}: the bias of {kind!r} follows from the steps of its inputs and its weight, and no row "
                f"quantizes its {' and its '.join(missing)}"
            )
