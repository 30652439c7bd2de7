"""What is registered: the tables of passes, lowerings, integer forms and targets, and the plugins that brought it.

All state of the registry is here; nothing outside of this package reads or writes it.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn
from torch.fx import Node

from fxq.errors import PluginError
from fxq.kinds import forget_looked_up
from fxq.kinds import registered as registered_kinds
from fxq.passbase import Pass
from fxq.quant.registry import fits
from fxq.targets import TARGETS as BUILT_IN_TARGETS
from fxq.targets import Target


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


class IntegerForm(Protocol):
    """How an operation is computed on integers: whether it can be, and by what, side by side."""

    def why_not(self, node: Node) -> str | None:
        """Return why ``node`` has no integer form, though others of its kind have, None if it has one."""

    def codes(self, writer: Any, node: Node, grid: Any) -> Node:
        """Insert what computes the result of ``node`` in the codes of ``grid`` from integers; return it.

        Args:
            writer: the :class:`fxq.integer.Writer`: ``codes`` and ``single`` give the inputs as integers, ``insert``
                and ``store`` write nodes and tensors.
            node: of the lowered graph; it computes in float, between dequantize and quantize.
            grid: the :class:`fxq.integer.Grid` of the quantize that reads it.
        """


@dataclass(frozen=True)
class TargetRegistration:
    """A registered target, the module that registered it, and the package it came with ("" for a script)."""

    target: Target
    module: str
    package: str = ""

    def __str__(self) -> str:
        return f"package {self.package!r} ({self.module})" if self.package else f"module {self.module!r}"


passes: dict[str, Registration] = {}
lowerings: dict[type[nn.Module], ModuleLowering] = {}
integer_forms: dict[str, IntegerForm] = {}  # by kind
targets: dict[str, TargetRegistration] = {
    name: TargetRegistration(target, "fxq.targets.builtin", "fxq") for name, target in BUILT_IN_TARGETS.items()
}
_TABLES: tuple[dict[Any, Any], ...] = (passes, lowerings, integer_forms, targets, registered_kinds, fits)
loaded: set[str] = set()  # entry points that were imported
searched: list[tuple[str, int]] = []  # where they were looked for, as it was then: path, time of change in ns
loading: list[importlib.metadata.EntryPoint] = []  # those that are being imported, the innermost last


def add_target(target: Any, module: str) -> Target:
    """Register a target for ``module``, the name of who brings it; return it.

    Raises:
        PluginError: it is no Target, or another one has the name.
    """
    if not isinstance(target, Target):
        raise PluginError(f"{module} registers {target!r} as a target; it must be a fxq.Target")
    found = TargetRegistration(target, module, package_name(loading[-1]) if loading else "")
    taken = targets.setdefault(target.name, found)
    if taken.target != target:
        raise PluginError(
            f"the target name {target.name!r} is taken by {taken}, and {found} wants it too, for another target; "
            "rename one of them (Recipe(target=...) takes a target without a registered name)"
        )
    return target


def add_class(
    table: dict[Any, Any],
    keys: Mapping[Any, str],
    own_type: type,
    needs: Mapping[str, str],
    words: tuple[str, str],
    cure: str,
) -> None:
    """Register an instance of a class under some keys of a table.

    Args:
        table: of this module.
        keys: each with its name.
        own_type: takes no arguments.
        needs: its methods, each with its arguments.
        words: what it is to a key, and a key to it, such as "lowers" and "is lowered by".
        cure: what to do where a key has another class.

    Raises:
        PluginError: a method is missing, or a key has another class.
    """
    own = full_name(own_type)
    for method in needs:
        if not callable(getattr(own_type, method, None)):
            methods = " and ".join(f"{name}({arguments})" for name, arguments in needs.items())
            first = next(iter(keys.values()))
            raise PluginError(f"{own} {words[0]} {first} and has no method {method!r}: it needs {methods}")
    for key, name in keys.items():
        taken = table.get(key)
        if taken is not None and full_name(type(taken)) != own:
            raise PluginError(f"{name} {words[1]} {full_name(type(taken))}, and {own} wants it too; {cure}")
    table.update(dict.fromkeys(keys, own_type()))


def package_name(entry: importlib.metadata.EntryPoint) -> str:
    """Return the package that an entry point came with."""
    return entry.dist.name if entry.dist else "unknown"


def snapshot() -> list[Mapping[Any, Any]]:
    """Return what is registered now."""
    return [dict(table) for table in _TABLES]


def restore(before: Sequence[Mapping[Any, Any]]) -> None:
    """Forget what was registered since ``before``, such as by a plugin that failed."""
    for table, known in zip(_TABLES, before, strict=True):
        table.clear()
        table.update(known)
    forget_looked_up()


def full_name(definition: type) -> str:
    """Return what a class is called, module included: who has the same one is the same class, defined again."""
    return f"{definition.__module__}.{definition.__qualname__}"
