"""Lowerings of quantized modules: registering one, and finding that of a module."""

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from fxq.errors import PluginError
from fxq.nn.computed import plain_type
from fxq.nn.mapping import quantized_type
from fxq.registry import tables
from fxq.registry.plugins import load_plugins
from fxq.registry.tables import ModuleLowering

LoweringType = TypeVar("LoweringType", bound=type[ModuleLowering])


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
        names = {module_type: module_type.__name__ for module_type in module_types}
        needs = {"why_not": "node, module", "lower": "lowering, node, layer"}
        cure = "write a subclass of the module for yours"
        tables.add_class(tables.lowerings, names, lowering_type, needs, ("lowers", "is lowered by"), cure)
        return lowering_type

    return register


def find_lowering(module: nn.Module) -> ModuleLowering | None:
    """Return what lowers ``module``, or the quantized module that would take its place, None where nothing does."""
    if not tables.loaded:  # asked of every module, and it reads the metadata of each installed package
        load_plugins()
    quantized = quantized_type(module) or plain_type(module)
    return next((tables.lowerings[base] for base in quantized.__mro__ if base in tables.lowerings), None)
