"""Targets by name: registering one, and finding it."""

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from fxq.errors import TargetError
from fxq.registry import tables
from fxq.registry.plugins import load_plugins
from fxq.registry.tables import TargetRegistration
from fxq.targets import Target


def register_target(target: Target) -> Target:
    """Register a target under its name, for recipes, the command line and ``fxq.get_target``; return it.

    Raises:
        PluginError: it is no Target, or another one has the name.
    """
    return tables.add_target(target, sys._getframe(1).f_globals.get("__name__", "__main__"))


def registered_targets() -> Mapping[str, TargetRegistration]:
    """Return all targets by name, those of installed packages included."""
    load_plugins()
    return MappingProxyType(dict(tables.targets))


def get_target(name: str) -> Target:
    """Return a target by name: built in, registered by a script, or of an installed package.

    Raises:
        TargetError: there is no such target.
        PluginError: a plugin does not load.
    """
    if name not in tables.targets:  # fxq itself asks for the built-in ones, while it is imported
        load_plugins()
    if name not in tables.targets:
        close = difflib.get_close_matches(str(name), tables.targets, n=1)
        hint = f"did you mean {close[0]!r}? There" if close else "there"
        raise TargetError(f"unknown target {name!r}; {hint} are {', '.join(tables.targets)}")
    return tables.targets[name].target


def target_from_file(path: str | Path) -> Target:
    """Read a target from a TOML file, under a name of its own.

    Raises:
        TargetError: the file cannot be read, means nothing, or changes a registered target and keeps its name.
    """
    target = Target.from_file(path)
    found = registered_targets().get(target.name)
    if found is not None and found.target != target:
        raise TargetError(
            f"{path}: the name {target.name!r} is that of another target ({found.package or found.module}), which this "
            f'one changes: give it a name of its own, such as name = "my_{target.name}"'
        )
    return target


def is_registered(target: Target) -> bool:
    """Return whether a target's name stands for it."""
    found = tables.targets.get(target.name)
    return found is not None and found.target == target
