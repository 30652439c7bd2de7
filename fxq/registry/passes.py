"""Passes by name: registering one, and making one with the options of a recipe."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from fxq.errors import PluginError, RecipeError
from fxq.passbase import Pass
from fxq.registry import tables
from fxq.registry.plugins import load_plugins
from fxq.registry.tables import Registration, full_name
from fxq.stage import Stage
from fxq.tolerance import is_tolerance

PassType = TypeVar("PassType", bound=type[Pass])


def register_pass(name: str) -> Callable[[PassType], PassType]:
    """Return a class decorator that registers a Pass under ``name``: ``@fxq.register_pass("my_pass")``.

    Raises:
        PluginError: the name is taken by another class, or the class is no Pass with a stage.
    """

    if not isinstance(name, str):
        raise PluginError(f'a pass is registered under a name: write @fxq.register_pass("my_pass"), got {name!r}')

    def register(pass_type: PassType) -> PassType:
        _check_pass_type(name, pass_type)
        taken, own = tables.passes.get(name), full_name(pass_type)
        # The same definition again is a notebook cell or a module that ran twice.
        if taken is not None and full_name(taken.pass_type) != own:
            raise PluginError(
                f"the pass name {name!r} is taken by {full_name(taken.pass_type)}, and {own} wants it too; "
                "register one of them under another name"
            )
        pass_type.name = name
        tables.passes[name] = Registration(pass_type, tables.loading[-1].name if tables.loading else "")
        return pass_type

    return register


def registered_passes() -> Mapping[str, Registration]:
    """Return all passes by name, those of installed packages included."""
    load_plugins()
    return MappingProxyType(dict(sorted(tables.passes.items())))


def registered_pass(name: str) -> Registration:
    """Return the pass ``name``; RecipeError if there is none."""
    if name in tables.passes:  # known: no need to look for packages that were installed meanwhile
        return tables.passes[name]
    passes = registered_passes()
    if name not in passes:
        close = difflib.get_close_matches(name, passes)
        hint = f"did you mean {close[0]!r}?" if close else "`fxq passes` lists all"
        raise RecipeError(f"unknown pass {name!r}; {hint}")
    return passes[name]


def create_pass(name: str, options: Mapping[str, Any]) -> Pass:
    """Return the pass ``name`` with the given options.

    Raises:
        RecipeError: there is no such pass, or it has no such option.
    """
    pass_type = registered_pass(name).pass_type
    known = pass_options(pass_type)
    for option, value in options.items():
        if option not in known:
            raise RecipeError(f"pass {name!r} has no option {option!r}; its options: {', '.join(known) or 'none'}")
        default = known[option]
        if isinstance(default, bool | int | float | str) and not _is_like(value, default):
            raise RecipeError(f"pass {name!r}: option {option!r} is a {type(default).__name__}, got {value!r}")
    try:
        return pass_type(**options)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an option without default is missing, or the pass refuses one in any way
        raise RecipeError(f"pass {name!r} refuses its options {dict(options)}: {error}") from error


def pass_options(pass_type: type[Pass]) -> dict[str, Any]:
    """Return the options of a pass by name, with their defaults (None where there is none)."""
    fields: tuple[dataclasses.Field[Any], ...] = ()
    if dataclasses.is_dataclass(pass_type):
        fields = dataclasses.fields(pass_type)
    return {field.name: None if field.default is dataclasses.MISSING else field.default for field in fields}


def _check_pass_type(name: str, pass_type: Any) -> None:
    if not (isinstance(pass_type, type) and issubclass(pass_type, Pass)):
        raise PluginError(f"pass {name!r}: {pass_type!r} is not a subclass of fxq.Pass")
    if not isinstance(getattr(pass_type, "stage", None), Stage):
        raise PluginError(
            f"pass {name!r} ({full_name(pass_type)}) names no stage: add `stage = fxq.Stage.NORMALIZED` or so"
        )
    if pass_type.stage > Stage.LOWERED:
        raise PluginError(
            f"pass {name!r} ({full_name(pass_type)}) is of stage '{pass_type.stage}', which no pass makes: "
            "fxq.to_integer does, by integer forms (fxq.integer_form)"
        )
    if inspect.isabstract(pass_type):
        raise PluginError(f"pass {name!r} ({full_name(pass_type)}) has no method run: add `def run(self, rw) -> None`")
    if hasattr(pass_type, "preserves_numbers"):
        keeps = "fxq.ROUNDING" if pass_type.preserves_numbers else "fxq.ANY"
        raise PluginError(
            f"pass {name!r} ({full_name(pass_type)}) sets preserves_numbers, which is now a tolerance: write "
            f"`tolerance = {keeps}` instead, or fxq.EXACT or fxq.LSB(n) where that is what it holds"
        )
    if not is_tolerance(pass_type.tolerance):
        raise PluginError(
            f"pass {name!r} ({full_name(pass_type)}) has the tolerance {pass_type.tolerance!r}: write "
            "`tolerance = fxq.EXACT`, fxq.ROUNDING, fxq.LSB(n) or fxq.ANY"
        )
    _check_data_attributes(name, pass_type)
    if not name or not name.replace("_", "").isalnum() or name != name.lower():
        raise PluginError(f"pass name {name!r}: use lower-case words joined by underscores")


def _check_data_attributes(name: str, pass_type: type[Pass]) -> None:
    """Refuse what only a pass with data can be, of another one: it would mean nothing, in silence."""
    said = [word for word in ("improves", "corrects", "keeps_ranges", "streams") if getattr(pass_type, word)]
    if said and pass_type.stage is not Stage.CALIBRATED:
        raise PluginError(
            f"pass {name!r} ({full_name(pass_type)}) of stage '{pass_type.stage}' sets {said[0]}, which only passes "
            "with data have: declare stage = fxq.Stage.CALIBRATED, or leave it out"
        )
    if pass_type.streams and len(said) > 1:
        raise PluginError(
            f"pass {name!r} ({full_name(pass_type)}) sets streams and {said[0]}: what streams changes ranges alone, "
            "and keeps no samples to be measured on; leave one of them out"
        )


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)
