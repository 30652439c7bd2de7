"""Names of passes and targets, and the lowerings of modules: decorators, and the entry points of installed packages.

This module, ``fxq.kinds`` and ``fxq.quant.registry`` are the only ones with state. Built-in passes come through the
same entry-point group as everybody's.
"""

import dataclasses
import difflib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any, Protocol, TypeVar

from torch import nn
from torch.fx import Node

from fxq.errors import FxqError, PluginError, RecipeError, TargetError
from fxq.nn.mapping import QUANTIZED
from fxq.passbase import Pass
from fxq.stage import Stage
from fxq.targets import TARGETS as BUILT_IN_TARGETS
from fxq.targets import Target
from fxq.tolerance import is_tolerance

PASSES, TARGETS = "fxq.passes", "fxq.targets"  # groups of entry points
PassType = TypeVar("PassType", bound=type[Pass])
LoweringType = TypeVar("LoweringType", bound=type["ModuleLowering"])


@dataclass(frozen=True)
class Registration:
    """A registered pass and where it came from (an entry point's name, or "" for a script)."""

    pass_type: type[Pass]
    origin: str


class ModuleLowering(Protocol):
    """How calls of a quantized module are lowered: whether they can be, and into what, side by side."""

    def why_not(self, node: Node, module: Any) -> str | None:
        """Return why a call of ``module``, float or quantized, has no lowered form, None if it has one."""

    def lower(self, lowering: Any, node: Node, layer: Any) -> None:
        """Replace the call ``node`` of ``layer``.

        Args:
            lowering: what ``lower_to_qdq`` writes with: ``lowering.rw`` is its Rewriter; ``activation`` quantizes and
                dequantizes, ``weight_value`` reads a stored integer weight.
            node: the call.
            layer: the module, with its quantizers.
        """


@dataclass(frozen=True)
class TargetRegistration:
    """A registered target, the module that registered it, and the package it came with ("" for a script)."""

    target: Target
    module: str
    package: str = ""

    def __str__(self) -> str:
        return f"package {self.package!r} ({self.module})" if self.package else f"module {self.module!r}"


_registered: dict[str, Registration] = {}
_lowerings: dict[type[nn.Module], ModuleLowering] = {}
_targets: dict[str, TargetRegistration] = {
    name: TargetRegistration(target, "fxq.targets.builtin", "fxq") for name, target in BUILT_IN_TARGETS.items()
}
_TABLES: tuple[dict[Any, Any], ...] = (_registered, _lowerings, _targets)
_loaded: set[str] = set()
_loading: list[importlib.metadata.EntryPoint] = []


def register_pass(name: str) -> Callable[[PassType], PassType]:
    """Return a class decorator that registers a Pass under ``name``: ``@fxq.register_pass("my_pass")``.

    Raises:
        PluginError: the name is taken by another class, or the class is no Pass with a stage.
    """

    if not isinstance(name, str):
        raise PluginError(f'a pass is registered under a name: write @fxq.register_pass("my_pass"), got {name!r}')

    def register(pass_type: PassType) -> PassType:
        _check_pass_type(name, pass_type)
        taken = _registered.get(name)
        # The same definition again is a notebook cell or a module that ran twice.
        if taken is not None and _identity(taken.pass_type) != _identity(pass_type):
            raise PluginError(
                f"the pass name {name!r} is taken by {_where(taken.pass_type)}, and {_where(pass_type)} wants it too; "
                "register one of them under another name"
            )
        pass_type.name = name
        _registered[name] = Registration(pass_type, _loading[-1].name if _loading else "")
        return pass_type

    return register


def lowers(*module_types: type[nn.Module]) -> Callable[[LoweringType], LoweringType]:
    """Return a class decorator that registers how quantized modules are lowered: ``@fxq.lowers(QuantLSTM)``.

    The class has no arguments and the two methods of :class:`ModuleLowering`. Subclasses of ``module_types`` are
    lowered like them, unless they have a registration of their own.

    Raises:
        PluginError: one of these is no class of modules, is taken by another class, or a method is missing.
    """
    for module_type in module_types or (None,):
        if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
            raise PluginError(
                f"a lowering is for classes of modules: write @fxq.lowers(QuantLSTM), got {module_type!r}"
            )

    def register(lowering_type: LoweringType) -> LoweringType:
        for method in ("why_not", "lower"):
            if not callable(getattr(lowering_type, method, None)):
                raise PluginError(
                    f"{_where(lowering_type)} lowers {module_types[0].__name__} and has no method {method!r}: it needs "
                    "why_not(node, module) and lower(lowering, node, layer)"
                )
        for module_type in module_types:
            taken = _lowerings.get(module_type)
            if taken is not None and _identity(type(taken)) != _identity(lowering_type):
                raise PluginError(
                    f"{module_type.__name__} is lowered by {_where(type(taken))}, and {_where(lowering_type)} wants it "
                    "too; write a subclass of the module for yours"
                )
        _lowerings.update(dict.fromkeys(module_types, lowering_type()))
        return lowering_type

    return register


def find_lowering(module: nn.Module) -> ModuleLowering | None:
    """Return what lowers ``module``, or the quantized module that would take its place, None where nothing does."""
    if not _loaded:  # asked of every module, and it reads the metadata of each installed package
        load_plugins()
    quantized = QUANTIZED.get(type(module), type(module))
    return next((_lowerings[base] for base in quantized.__mro__ if base in _lowerings), None)


def registered_passes() -> Mapping[str, Registration]:
    """Return all passes by name, those of installed packages included."""
    load_plugins()
    return MappingProxyType(dict(sorted(_registered.items())))


def create_pass(name: str, options: Mapping[str, Any]) -> Pass:
    """Return the pass ``name`` with the given options.

    Raises:
        RecipeError: there is no such pass, or it has no such option.
    """
    passes = registered_passes()
    if name not in passes:
        close = difflib.get_close_matches(name, passes)
        hint = f"did you mean {close[0]!r}?" if close else "`fxq passes` lists all"
        raise RecipeError(f"unknown pass {name!r}; {hint}")
    pass_type = passes[name].pass_type
    known = pass_options(pass_type)
    for option, value in options.items():
        if option not in known:
            raise RecipeError(f"pass {name!r} has no option {option!r}; its options: {', '.join(known) or 'none'}")
        default = known[option]
        if isinstance(default, bool | int | float | str) and not _is_like(value, default):
            raise RecipeError(f"pass {name!r}: option {option!r} is a {type(default).__name__}, got {value!r}")
    try:
        return pass_type(**options)
    except (TypeError, ValueError) as error:  # an option without default is missing, or the pass refuses one
        raise RecipeError(f"pass {name!r} refuses its options {dict(options)}: {error}") from error


def pass_options(pass_type: type[Pass]) -> dict[str, Any]:
    """Return the options of a pass by name, with their defaults (None where there is none)."""
    fields: tuple[dataclasses.Field[Any], ...] = ()
    if dataclasses.is_dataclass(pass_type):
        fields = dataclasses.fields(pass_type)
    return {field.name: None if field.default is dataclasses.MISSING else field.default for field in fields}


def register_target(target: Target) -> Target:
    """Register a target under its name, for recipes, the command line and ``fxq.get_target``; return it.

    Raises:
        PluginError: it is no Target, or another one has the name.
    """
    return _register_target(target, sys._getframe(1).f_globals.get("__name__", "__main__"))


def registered_targets() -> Mapping[str, TargetRegistration]:
    """Return all targets by name, those of installed packages included."""
    load_plugins()
    return MappingProxyType(dict(_targets))


def get_target(name: str) -> Target:
    """Return a target by name: built in, registered by a script, or of an installed package.

    Raises:
        TargetError: there is no such target.
        PluginError: a plugin does not load.
    """
    if name not in _targets:  # fxq itself asks for the built-in ones, while it is imported
        load_plugins()
    if name not in _targets:
        close = difflib.get_close_matches(str(name), _targets, n=1)
        hint = f"did you mean {close[0]!r}? There" if close else "there"
        raise TargetError(f"unknown target {name!r}; {hint} are {', '.join(_targets)}")
    return _targets[name].target


def is_registered(target: Target) -> bool:
    """Return whether a target's name stands for it."""
    found = _targets.get(target.name)
    return found is not None and found.target == target


def load_plugins() -> None:
    """Import the entry points of groups ``fxq.passes`` and ``fxq.targets`` that were not imported yet.

    Raises:
        PluginError: one does not import, or registers nothing.
    """
    if _loading:
        return  # a plugin that asks for names while it is imported sees those that are there
    for group, load in ((PASSES, _load_passes), (TARGETS, _load_targets)):
        for entry in sorted(importlib.metadata.entry_points(group=group), key=_loading_order):
            key = f"{group}: {entry.name} = {entry.value}"
            if key not in _loaded:
                load(entry)
                _loaded.add(key)


def _register_target(target: Any, module: str) -> Target:
    if not isinstance(target, Target):
        raise PluginError(f"{module} registers {target!r} as a target; it must be a fxq.Target")
    found = TargetRegistration(target, module, _package(_loading[-1]) if _loading else "")
    taken = _targets.setdefault(target.name, found)
    if taken.target != target:
        raise PluginError(
            f"the target name {target.name!r} is taken by {taken}, and {found} wants it too, for another target; "
            "rename one of them (Recipe(target=...) takes a target without a registered name)"
        )
    return target


def _package(entry: importlib.metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown"


def _loading_order(entry: importlib.metadata.EntryPoint) -> tuple[bool, str, str]:
    """Those that come with fxq first: where two want one name, the newcomer is the one to blame."""
    package = entry.dist.name if entry.dist else ""
    return package != "fxq", package, entry.name


def _load_passes(entry: importlib.metadata.EntryPoint) -> None:
    lowerings = dict(_lowerings)
    loaded = _load(entry)
    if lowerings == _lowerings and not any(_belongs(found, entry.name, entry.module) for found in _registered.values()):
        raise PluginError(
            f"{_described(entry)} registers no pass and no lowering; the file imported is {_file(loaded)}. Decorate "
            "its passes with @fxq.register_pass, and check that no other module of the same name shadows it"
        )


def _load_targets(entry: importlib.metadata.EntryPoint) -> None:
    loaded = _load(entry)
    if isinstance(loaded, ModuleType):
        found = (item for item in _targets.values() if f"{item.module}.".startswith(f"{entry.module}."))
        if not any(found):
            raise PluginError(
                f"{_described(entry)} registers no target; the file imported is {_file(loaded)}. Call "
                "fxq.register_target(target) in it, or let the entry point name the target (module:TARGET)"
            )


def _load(entry: importlib.metadata.EntryPoint) -> Any:
    """Return what an entry point names; a target is registered. What it registered before it failed is forgotten."""
    before = _snapshot()
    _loading.append(entry)
    try:
        loaded = entry.load()
        if entry.group == TARGETS and not isinstance(loaded, ModuleType):
            _register_target(loaded, entry.module)
    except FxqError as error:
        _restore(before)
        raise PluginError(f"{_described(entry)} does not load: {error}") from error
    except Exception as error:  # a plugin may fail in any way; the user must learn which one it was
        _restore(before)
        raise PluginError(
            f"{_described(entry)} does not import: {type(error).__name__}: {error}; fix or uninstall the package"
        ) from error
    finally:
        _loading.pop()
    return loaded


def _snapshot() -> list[Mapping[Any, Any]]:
    """Return what is registered now."""
    return [dict(table) for table in _TABLES]


def _restore(before: Sequence[Mapping[Any, Any]]) -> None:
    """Forget what was registered since ``before``, such as by a plugin that failed."""
    for table, known in zip(_TABLES, before, strict=True):
        table.clear()
        table.update(known)


def _described(entry: importlib.metadata.EntryPoint) -> str:
    return f"plugin {entry.name!r} ({entry.value}, of package {_package(entry)})"


def _file(loaded: Any) -> str:
    return str(getattr(loaded if isinstance(loaded, ModuleType) else inspect.getmodule(loaded), "__file__", "unknown"))


def _belongs(found: Registration, entry_name: str, module: str) -> bool:
    defined_in = found.pass_type.__module__
    return found.origin == entry_name or defined_in == module or defined_in.startswith(f"{module}.")


def _check_pass_type(name: str, pass_type: Any) -> None:
    if not (isinstance(pass_type, type) and issubclass(pass_type, Pass)):
        raise PluginError(f"pass {name!r}: {pass_type!r} is not a subclass of fxq.Pass")
    if not isinstance(getattr(pass_type, "stage", None), Stage):
        raise PluginError(
            f"pass {name!r} ({_where(pass_type)}) names no stage: add `stage = fxq.Stage.NORMALIZED` or so"
        )
    if hasattr(pass_type, "preserves_numbers"):
        keeps = "fxq.ROUNDING" if pass_type.preserves_numbers else "fxq.ANY"
        raise PluginError(
            f"pass {name!r} ({_where(pass_type)}) sets preserves_numbers, which is now a tolerance: write "
            f"`tolerance = {keeps}` instead, or fxq.EXACT or fxq.LSB(n) where that is what it holds"
        )
    if not is_tolerance(pass_type.tolerance):
        raise PluginError(
            f"pass {name!r} ({_where(pass_type)}) has the tolerance {pass_type.tolerance!r}: write "
            "`tolerance = fxq.EXACT`, fxq.ROUNDING, fxq.LSB(n) or fxq.ANY"
        )
    if not name or not name.replace("_", "").isalnum() or name != name.lower():
        raise PluginError(f"pass name {name!r}: use lower-case words joined by underscores")


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def _identity(pass_type: type) -> tuple[str, str]:
    return pass_type.__module__, pass_type.__qualname__


def _where(pass_type: type) -> str:
    return f"{pass_type.__module__}.{pass_type.__qualname__}"
