"""A call of a function as the operations that the function consists of, traced for the shapes of the call."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map_only

from fxq.graph.arguments import facts_about
from fxq.graph.match import is_constant
from fxq.graph.shape_proxy import item_of
from fxq.graph.shape_tracer import ShapeTracer
from fxq.graph.trace import erase_dead_questions
from fxq.process_lock import PROCESS_LOCK


@dataclass(frozen=True)
class WrittenOut:
    """The operations of a call.

    Args:
        graph: has a placeholder for each argument that holds nodes.
        arguments: of the call, by the function's parameters.
        constants: holds the tensors that the function made itself, which the graph reads.
    """

    graph: Graph
    arguments: Mapping[str, Any]
    constants: nn.Module


def written_out(node: Node, function: Callable[..., Any], operands: Sequence[Any] | None = None) -> WrittenOut | str:
    """Return what ``function`` does with the arguments of ``node``, or why that is not known.

    Tests of shapes are decided with the traced shapes, as everywhere. What is no node is burned in.

    Args:
        node: the call.
        function: a Python function that computes the same.
        operands: its arguments, if they are others than those of ``node``.
    """
    args, kwargs = (node.args, node.kwargs) if operands is None else (operands, {})
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    sources = {name: _nodes_in(value) for name, value in bound.arguments.items()}
    if any("val" not in source.meta for nodes in sources.values() for source in nodes):
        return "the shapes of its inputs are not known; give prepare() example_inputs"
    tracer = _CallTracer(bound.arguments)
    try:
        with PROCESS_LOCK, torch.no_grad():
            graph = tracer.trace(function)
    except Exception as error:  # a function of others may raise anything
        return f"cannot be traced: {type(error).__name__}: {error}"
    decided = [fact.name for fact in tracer.facts if any(map(facts_about, sources.get(fact.name, ())))]
    if decided:
        return f"decides by the value of its {decided[0]}"
    erase_dead_questions(graph)
    return WrittenOut(graph, bound.arguments, tracer.root)


class _CallTracer(ShapeTracer):
    """Traces a function whose arguments are values and nodes of another graph."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(inputs={name: map_arg(value, _example) for name, value in arguments.items()})
        self._arguments = arguments

    def _argument(self, proxy: Any) -> Any:
        given = self._arguments[str(proxy.node.target)]
        if isinstance(given, Node) and is_constant(given):
            self.numbers.stored.add(proxy.node)
        if not _nodes_in(given):
            return given
        if isinstance(given, tuple | list):
            items = [item_of(proxy, index) if _nodes_in(item) else item for index, item in enumerate(given)]
            return items if isinstance(given, list) else tuple(items)
        return proxy


def _nodes_in(value: Any) -> list[Node]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Node)]


def _example(source: Node) -> Any:
    return tree_map_only(Tensor, _empty, source.meta["val"])


def _empty(value: Tensor) -> Tensor:
    return torch.empty(tuple(map(int, value.shape)), dtype=value.dtype, device=value.device)
