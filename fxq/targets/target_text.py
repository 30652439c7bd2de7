"""Targets as plain data, for TOML, and back."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fxq.errors import FxqError, TargetError
from fxq.quant.descriptor import QuantDescriptor
from fxq.targets.constraints import Constraint, Derived, Fixed, Same
from fxq.targets.file_rules import FileRules
from fxq.targets.formats import Formats
from fxq.targets.op_rule import SLOTS, OpRule

if TYPE_CHECKING:
    from fxq.targets.target import Target

_CONSTRAINTS: dict[str, type[Constraint]] = {"same": Same, "fixed": Fixed, "derived": Derived}


def target_to_dict(target: "Target") -> dict[str, Any]:
    """Return a target as plain data: its name, rows and constraints, and what differs from the defaults."""
    plain: dict[str, Any] = {"name": target.name, **_differences(target, ("fused_activations", "float_readers"))}
    if target.activation != QuantDescriptor():
        plain["activation"] = False if target.activation is None else target.activation.to_dict()
    if target.weight != QuantDescriptor(axis=0):
        plain["weight"] = target.weight.to_dict()
    for name, default in (("formats", Formats()), ("file", FileRules())):
        if getattr(target, name) != default:
            plain[name] = _differences(getattr(target, name), [field.name for field in dataclasses.fields(default)])
    if "weight_axes" in plain.get("file", {}):
        plain["file"]["weight_axes"] = dict(target.file.weight_axes)
    plain["ops"] = [_row_to_dict(row) for row in target.ops]
    names = {kind: name for name, kind in _CONSTRAINTS.items()}
    plain["constraints"] = [{"type": names[type(item)], **_plain_fields(item)} for item in target.constraints]
    return {name: value for name, value in plain.items() if value != []}


def arguments_from_dict(fields: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Return the arguments of a Target that plain data describes; anything it does not know is a TargetError."""
    if "name" not in fields:
        raise TargetError('a target has a name: add name = "mine"')
    where = f"target {fields['name']!r}"
    _check_names(fields, known, where, "a target")
    values = dict(fields)
    for name in ("activation", "weight"):
        if name in fields:
            values[name] = _descriptor(fields[name], f"{where}: {name}")
    for name, options in (("formats", Formats), ("file", FileRules)):
        if name in fields:
            values[name] = _options(options, fields[name], f"{where}: {name}")
    for name in ("fused_activations", "float_readers"):
        if name in fields:
            values[name] = frozenset(_words(fields[name], f"{where}: {name}"))
    if "ops" in fields:
        values["ops"] = tuple(_row(row, at) for row, at in _tables(fields, "ops", where))
    if "constraints" in fields:
        values["constraints"] = tuple(_constraint(item, at) for item, at in _tables(fields, "constraints", where))
    return values


def _differences(options: Any, names: Iterable[str]) -> dict[str, Any]:
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    return {name: _plain(getattr(options, name)) for name in names if getattr(options, name) != defaults[name]}


def _plain_fields(item: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(item, field.name)) for field in dataclasses.fields(item)}


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, QuantDescriptor):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


def _row_to_dict(row: OpRule) -> dict[str, Any]:
    texts = {name: value for name, value in (("when", row.when), ("why", row.why)) if value}
    return {"kinds": _plain(row.kinds), **{slot: _plain(given) for slot, given in row.slots}, **texts}


def _check_names(fields: Mapping[str, Any], known: Iterable[str], where: str, what: str) -> None:
    known = list(known)
    for name in fields:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        raise TargetError(f"{where}: {what} has no entry {name!r} (options of passes belong in a recipe); {hint}")


def _tables(fields: Mapping[str, Any], name: str, where: str) -> list[tuple[dict[str, Any], str]]:
    tables = fields[name]
    if not (isinstance(tables, list) and all(isinstance(table, dict) for table in tables)):
        raise TargetError(f"{where}: {name} must be a list of tables ([[{name}]]), got {tables!r}")
    return [(table, f"{where}: {name}[{index}]") for index, table in enumerate(tables)]


def _words(given: Any, where: str) -> tuple[str, ...]:
    words = [given] if isinstance(given, str) else given
    if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise TargetError(f"{where} must be a list of words, got {given!r}")
    return tuple(words)


def _descriptor(given: Any, where: str) -> Any:
    """Return the descriptor that a table describes; False stands for float, and checks of the target take it on."""
    if given is False:
        return None
    if not isinstance(given, dict):
        raise TargetError(f"{where} must be a table of descriptor fields, got {given!r}")
    try:
        return QuantDescriptor.from_dict(given)
    except FxqError as error:
        raise TargetError(f"{where}: {error}") from error


def _options(kind: type, given: Any, where: str) -> Any:
    if not isinstance(given, dict):
        raise TargetError(f"{where} must be a table, got {given!r}")
    _check_names(given, [field.name for field in dataclasses.fields(kind)], where, where.rpartition(" ")[2])
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if isinstance(values.get("weight_axes"), dict):
        values["weight_axes"] = tuple(values["weight_axes"].items())
    for name, value in values.items():
        if isinstance(value, dict):
            raise TargetError(f"{where}.{name} must be no table, got {value!r}")
        if isinstance(value, tuple) and any(isinstance(item, list | dict) for item in value):
            raise TargetError(f"{where}.{name} must be a flat list, got {given[name]!r}")
    return kind(**values)


def _row(fields: dict[str, Any], where: str) -> OpRule:
    _check_names(fields, [field.name for field in dataclasses.fields(OpRule)], where, "a row")
    if "kinds" not in fields:
        raise TargetError(f'{where} names no kind: add kinds = ["conv"]')
    values = {**fields, "kinds": _words(fields["kinds"], f"{where}.kinds")}
    for slot in SLOTS:
        if isinstance(fields.get(slot), dict):
            values[slot] = _descriptor(fields[slot], f"{where}.{slot}")
    return OpRule(**values)


def _constraint(fields: dict[str, Any], where: str) -> Constraint:
    found = _CONSTRAINTS.get(str(fields.get("type")))
    if found is None:
        raise TargetError(f"{where}.type must be one of {', '.join(_CONSTRAINTS)}, got {fields.get('type')!r}")
    rest = {name: value for name, value in fields.items() if name != "type"}
    names = [field.name for field in dataclasses.fields(found)]
    _check_names(rest, names, where, found.__name__)
    missing = [
        field.name for field in dataclasses.fields(found)
        if field.default is dataclasses.MISSING and field.name not in rest
    ]  # fmt: skip
    if missing:
        raise TargetError(f"{where}: {found.__name__} needs {missing[0]!r}")
    for name in ("kinds", "slots"):
        if name in rest:
            rest[name] = _words(rest[name], f"{where}.{name}")
    return found(**rest)
