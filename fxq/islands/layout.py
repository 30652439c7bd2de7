"""Islands: where the prepared parts are in the graph module of a model that does not trace, and what stays outside."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY
from torch.fx.node import Argument

from fxq.errors import InputError
from fxq.graph.arguments import check_calls
from fxq.nn import plain_type

MODEL = "model"
_LITERALS = (bool, int, float, str)


@dataclass(frozen=True)
class Islands:
    """The parts of a model that were prepared.

    Args:
        paths: of the islands in the user's model.
        left: what stays in the model's Python, in float: by module path, why.
    """

    paths: tuple[str, ...]
    left: Mapping[str, str]

    def modules(self, gm: nn.Module) -> dict[str, GraphModule]:
        """Return the islands in the graph module of the whole, by path in the user's model."""
        found = {path: gm.get_submodule(f"{MODEL}.{path}") for path in self.paths}
        return {path: module for path, module in found.items() if isinstance(module, GraphModule)}


def graph_around(model: nn.Module, inputs: tuple[Any, ...]) -> GraphModule:
    """Return a graph module that calls ``model`` as it is, with its signature, ``*args`` and ``**kwargs`` aside.

    Raises:
        InputError: the inputs go to ``*args``, or to a parameter whose default no code spells.
    """
    graph = Graph()
    positional: list[Node] = []
    by_name: dict[str, Argument] = {}
    has_gap = False
    parameters = list(inspect.signature(model.forward).parameters.values())
    for parameter in parameters:
        is_given = len(positional) + len(by_name) < len(inputs)
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            break
        if parameter.default is not parameter.empty and not _is_literal(parameter.default):
            if is_given:
                raise InputError(
                    f"forward's parameter {parameter.name!r} has the default {parameter.default!r}, which the graph of "
                    "the whole cannot spell: make it None, and let None stand for that value"
                )
            has_gap = True
            continue
        node = graph.placeholder(parameter.name, default_value=parameter.default)
        if parameter.kind is parameter.KEYWORD_ONLY or has_gap:
            by_name[parameter.name] = node
        else:
            positional.append(node)
    count = len(positional) + len(by_name)
    if len(inputs) > count:
        raise InputError(
            f"the model's forward takes {count} inputs by name and got {len(inputs)} example inputs: with islands, "
            "*args are not passed on; give the model named parameters"
        )
    graph.output(graph.call_module(MODEL, tuple(positional), by_name))
    check_calls(graph, [])
    return GraphModule({MODEL: model}, graph, plain_type(model).__name__)


def put_in_place(root: nn.Module, module: nn.Module, other: nn.Module) -> None:
    """Put ``other`` wherever ``root`` has ``module``, with its plain attributes, which the model's Python may read."""
    for name, value in vars(module).items():
        if not name.startswith("_") and name != "forward" and name not in vars(other):
            vars(other)[name] = value
            if isinstance(other, GraphModule):  # or a copy of it would not have them
                other.meta.setdefault(_USER_PRESERVED_ATTRIBUTES_KEY, {})[name] = value
    for parent in root.modules():
        for name, child in parent._modules.items():
            if child is module:
                parent._modules[name] = other


def _is_literal(value: Any) -> bool:
    return value is None or type(value) in _LITERALS or (type(value) is tuple and all(map(_is_literal, value)))
