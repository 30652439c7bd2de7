"""Plugins: importing the entry points of installed packages, each as a whole or not at all.

Built-in passes come through the same entry-point group as everybody's.
"""

import importlib.metadata
import inspect
import os
import sys
from types import ModuleType
from typing import Any

from fxq.errors import FxqError, PluginError
from fxq.process_lock import PROCESS_LOCK
from fxq.registry import tables
from fxq.registry.tables import Registration

PASSES, TARGETS = "fxq.passes", "fxq.targets"  # groups of entry points


def load_plugins() -> None:
    """Import the entry points of groups ``fxq.passes`` and ``fxq.targets`` that were not imported yet.

    Raises:
        PluginError: one does not import, or registers nothing.
    """
    with PROCESS_LOCK:  # another thread waits until all names are there
        # A plugin that asks for names while it is imported sees those that are there. Each pass of a recipe is asked
        # for by name, and the metadata of all packages takes longer to read than a small model takes to quantize.
        if not tables.loading and (folders := _folders()) != tables.searched:
            _load_new()
            tables.searched[:] = folders


def _folders() -> list[tuple[str, int]]:
    """Return where packages may be installed, each with the time at which it was last changed."""
    return [(path, os.stat(path or ".").st_mtime_ns) for path in sys.path if os.path.exists(path or ".")]


def _load_new() -> None:
    for group, load in ((PASSES, _load_passes), (TARGETS, _load_targets)):
        for entry in sorted(importlib.metadata.entry_points(group=group), key=_loading_order):
            key = f"{group}: {entry.name} = {entry.value}"
            if key not in tables.loaded:
                load(entry)
                tables.loaded.add(key)


def _loading_order(entry: importlib.metadata.EntryPoint) -> tuple[bool, str, str]:
    """Those that come with fxq first: where two want one name, the newcomer is the one to blame."""
    package = entry.dist.name if entry.dist else ""
    return package != "fxq", package, entry.name


def _load_passes(entry: importlib.metadata.EntryPoint) -> None:
    lowerings = dict(tables.lowerings)
    loaded = _load(entry)
    if lowerings == tables.lowerings and not any(
        _belongs(found, entry.name, entry.module) for found in tables.passes.values()
    ):
        raise PluginError(
            f"{_described(entry)} registers no pass and no lowering; the file imported is {_file(loaded)}. Decorate "
            "its passes with @fxq.register_pass, and check that no other module of the same name shadows it"
        )


def _load_targets(entry: importlib.metadata.EntryPoint) -> None:
    loaded = _load(entry)
    if isinstance(loaded, ModuleType):
        found = (item for item in tables.targets.values() if f"{item.module}.".startswith(f"{entry.module}."))
        if not any(found):
            raise PluginError(
                f"{_described(entry)} registers no target; the file imported is {_file(loaded)}. Call "
                "fxq.register_target(target) in it, or let the entry point name the target (module:TARGET)"
            )


def _load(entry: importlib.metadata.EntryPoint) -> Any:
    """Return what an entry point names; a target is registered. What it registered before it failed is forgotten."""
    before = tables.snapshot()
    tables.loading.append(entry)
    try:
        loaded = entry.load()
        if entry.group == TARGETS and not isinstance(loaded, ModuleType):
            tables.add_target(loaded, entry.module)
    except FxqError as error:
        tables.restore(before)
        raise PluginError(f"{_described(entry)} does not load: {error}") from error
    except KeyboardInterrupt:
        tables.restore(before)
        raise
    except BaseException as error:  # a plugin may fail in any way, sys.exit too; the user must learn which one it was
        tables.restore(before)
        raise PluginError(
            f"{_described(entry)} does not import: {type(error).__name__}: {error}; fix or uninstall the package"
        ) from error
    finally:
        tables.loading.pop()
    return loaded


def _described(entry: importlib.metadata.EntryPoint) -> str:
    return f"plugin {entry.name!r} ({entry.value}, of package {tables.package_name(entry)})"


def _file(loaded: Any) -> str:
    return str(getattr(loaded if isinstance(loaded, ModuleType) else inspect.getmodule(loaded), "__file__", "unknown"))


def _belongs(found: Registration, entry_name: str, module: str) -> bool:
    defined_in = found.pass_type.__module__
    return found.origin == entry_name or defined_in == module or defined_in.startswith(f"{module}.")
