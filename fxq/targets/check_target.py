"""Whether a target means something: each error names the target, the field, and what was expected there."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fxq.errors import TargetError
from fxq.kinds import BUILT_IN_KINDS, WEIGHTED_KINDS, check_kind
from fxq.quant.descriptor import QuantDescriptor
from fxq.targets.check_constraint import check_constraint
from fxq.targets.file_rules import FileRules
from fxq.targets.formats import Formats
from fxq.targets.op_rule import OUTPUT_WHEN, SIGNED, SLOTS, WHEN, OpRule

if TYPE_CHECKING:
    from fxq.targets.target import Target

_FIRST_OPSET, _LAST_OPSET = 13, 28
# As ONNX writes them in lower case.
_DTYPES = ("int4", "uint4", "int8", "uint8", "int16", "uint16", "float8e4m3fn")


def check_target(target: "Target") -> None:
    """Raise a TargetError for the first field that cannot be."""
    if not (isinstance(target.name, str) and re.fullmatch(r"[A-Za-z0-9_-]+", target.name)):
        raise TargetError(f"a target is named by letters, digits, '_' and '-', got {target.name!r}")
    where = f"target {target.name!r}"
    _check_options(target.file, FileRules, f"{where}: file")
    _check_file(target.file, f"{where}: file")
    _check_options(target.formats, Formats, f"{where}: formats")
    for name in ("fused_activations", "float_readers"):
        _check_kinds(getattr(target, name), f"{where}: {name}")
    _check_kinds(target.formats.block_kinds, f"{where}: formats.block_kinds")
    _check_defaults(target, where)
    for index, row in enumerate(_items(target.ops, f"{where}: ops", "fxq.OpRule")):
        _check_row(target, row, f"{where}: ops[{index}]")
    _check_agreement(target, where)
    for index, item in enumerate(_items(target.constraints, f"{where}: constraints", "Same, Fixed or Derived")):
        check_constraint(target, item, f"{where}: constraints[{index}]")


def _items(given: Any, where: str, expected: str) -> tuple[Any, ...]:
    if not isinstance(given, tuple):
        raise TargetError(f"{where} must be a sequence of {expected}, got {given!r}")
    return given


def _check_options(options: Any, wanted: type, where: str) -> None:
    """Check the types of a dataclass whose defaults show them."""
    if not isinstance(options, wanted):
        raise TargetError(f"{where} must be a {wanted.__name__}, got {options!r}")
    for field in dataclasses.fields(wanted):
        given, default = getattr(options, field.name), field.default
        is_good = type(given) is type(default)
        if is_good and isinstance(default, tuple | frozenset):
            item: type = int if field.name.endswith(("_bits", "_sizes")) else str
            item = tuple if field.name == "weight_axes" else item
            is_good = all(type(one) is item for one in given)
        if not is_good:
            raise TargetError(f"{where}.{field.name} must look like {default!r}, got {given!r}")


def _check_file(file: FileRules, where: str) -> None:
    operators = dict(FileRules().weight_axes)
    for operator, _ in file.weight_axes:
        if operator not in operators:
            close = difflib.get_close_matches(str(operator), operators, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(operators)}"
            raise TargetError(f"{where}.weight_axes: no operator {operator!r} has a per-channel weight; {hint}")
    for name in ("activation_dtypes", "slow_activation_dtypes", "weight_dtypes"):
        for dtype in getattr(file, name):
            if dtype not in _DTYPES:
                close = difflib.get_close_matches(dtype, _DTYPES, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_DTYPES)}"
                raise TargetError(f"{where}.{name}: no codes are {dtype!r}; {hint}")
    if not _FIRST_OPSET <= file.minimum_opset <= _LAST_OPSET:
        raise TargetError(
            f"{where}.minimum_opset must be an ONNX opset that has QuantizeLinear per axis, {_FIRST_OPSET} to "
            f"{_LAST_OPSET}, got {file.minimum_opset}"
        )


def _check_kinds(words: Any, where: str) -> None:
    if isinstance(words, str) or not isinstance(words, Iterable):
        raise TargetError(f"{where} must be a set of kinds, got {words!r}")
    for word in words:
        check_kind(word, where)


def _check_defaults(target: "Target", where: str) -> None:
    if target.activation is not None:
        _check_descriptor(target.activation, f"{where}: activation", "a QuantDescriptor, or None for float")
        with _offering_formats():
            target.check_activation(target.activation, f"{where}: activation")
    _check_descriptor(target.weight, f"{where}: weight", "a QuantDescriptor")
    with _offering_formats():
        target.check_weight(target.weight, f"{where}: weight", min(target.formats.block_kinds, default="linear"))


@contextmanager
def _offering_formats() -> Iterator[None]:
    """Say to the author of a target, too, where it says what it can."""
    try:
        yield
    except TargetError as error:
        raise TargetError(f"{error}. If the runtime has it, say so in the target's formats and file") from error


def _check_descriptor(given: Any, where: str, expected: str) -> None:
    if not isinstance(given, QuantDescriptor):
        raise TargetError(f"{where} must be {expected}, got {given!r}")


def _check_row(target: "Target", row: Any, where: str) -> None:
    if not isinstance(row, OpRule):
        raise TargetError(f"{where} must be a fxq.OpRule, got {row!r}")
    if not row.kinds:
        raise TargetError(f'{where} names no kind: add kinds=("conv",)')
    _check_kinds(row.kinds, f"{where}.kinds")
    for slot in SLOTS:
        given = getattr(row, slot)
        if not isinstance(given, bool | QuantDescriptor):
            raise TargetError(f"{where}.{slot} must be True, False or a QuantDescriptor, got {given!r}")
    if not isinstance(row.why, str):
        raise TargetError(f"{where}.why must be a text, got {row.why!r}")
    _check_when(row, where)
    if not row.slots and not row.why:
        raise TargetError(f"{where} quantizes nothing: give it inputs, weight or output, or say why in `why`")
    for slot, given in row.slots:
        _check_slot(target, row, slot, given, f"{where}.{slot}")


def _check_when(row: OpRule, where: str) -> None:
    if row.when is None:
        return
    if row.when not in WHEN:
        close = difflib.get_close_matches(str(row.when), WHEN, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(WHEN)}"
        raise TargetError(f"{where}.when: there is no condition {row.when!r}; {hint}")
    slot, others = ("output", "inputs") if row.when in OUTPUT_WHEN else ("inputs", "output")
    if [name for name, _ in row.slots] != [slot]:
        raise TargetError(
            f"{where}: when={row.when!r} says when {slot if slot == 'inputs' else 'the output'} "
            f"{'are' if slot == 'inputs' else 'is'} quantized; set {slot}, and give weight and {others} a row "
            "of their own"
        )
    if row.when == SIGNED and not isinstance(row.inputs, QuantDescriptor):
        raise TargetError(
            f"{where}: when={SIGNED!r} gives some inputs another descriptor; set inputs to that descriptor"
        )
    if row.when == "absorbed_by_conv" and tuple(row.kinds) != ("add",):
        raise TargetError(f'{where}.when: a convolution absorbs an "add" only, got {", ".join(row.kinds)}')


def _check_slot(target: "Target", row: OpRule, slot: str, given: bool | QuantDescriptor, where: str) -> None:
    if slot == "weight":
        without = [kind for kind in row.kinds if kind in BUILT_IN_KINDS - WEIGHTED_KINDS]
        if without:
            raise TargetError(
                f"{where}: {without[0]!r} stores no weight; those that do: {', '.join(sorted(WEIGHTED_KINDS))}"
            )
    elif target.activation is None:
        raise TargetError(f"{where}: the target leaves activations in float; give it an activation descriptor")
    if isinstance(given, QuantDescriptor):
        with _offering_formats():
            if slot == "weight":
                for kind in row.kinds:
                    target.check_weight(given, where, kind)
            else:
                target.check_activation(given, where)


def _check_agreement(target: "Target", where: str) -> None:
    """Refuse two rows that say different things of one slot of one kind."""
    said: dict[tuple[str, str, str | None], tuple[int, bool | QuantDescriptor]] = {}
    for index, row in enumerate(target.ops):
        for kind in row.kinds:
            for slot, given in row.slots:
                first, before = said.setdefault((kind, slot, row.when), (index, given))
                if before != given:
                    raise TargetError(
                        f"{where}: ops[{first}] and ops[{index}] contradict each other on {slot} of {kind!r}: "
                        f"{_said(before)} and {_said(given)}"
                    )
    for index, row in enumerate(target.ops):
        for kind in row.kinds if not row.slots else ():
            others = (said[key][0] for key in said if key[0] == kind and key[2] is None)
            other = next(others, None)
            if other is not None:
                raise TargetError(
                    f"{where}: ops[{index}] and ops[{other}] contradict each other: the first leaves {kind!r} in float "
                    f"({row.why}), the second quantizes it"
                )


def _said(given: bool | QuantDescriptor) -> str:
    return str(given) if isinstance(given, QuantDescriptor) else "the target's default"
