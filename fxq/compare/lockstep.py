"""Walk a quantized graph and its float counterpart side by side, one batch at a time.

A node of the quantized graph has a counterpart: the node of the same name in the float graph. What has none
(quantizers, the integers of a weight, what a layer was taken apart into) is between two nodes that have one. At each
node with a counterpart there are three values: what the float model computes, what the quantized one does
(*accumulated*: with all errors before it), and what the quantized node computes of what the *float* model computes
before it (*local*: its own error, that of its inputs' quantizers and of its weights).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from fxq.batches import Inputs
from fxq.graph.match import is_quantizer
from fxq.graph.streams import by_placeholder, function_of, last_reads


class Step(NamedTuple):
    """A node of the quantized graph, its counterpart, and what is computed there; ``local`` None unless asked for."""

    node: Node
    expected: Any
    found: Any
    local: Any


class Lockstep:
    """A quantized graph, and the float graph that it is compared with.

    Args:
        quantized: computes with its quantizers as they are switched.
        in_float: computes what the float model does.
    """

    def __init__(self, quantized: GraphModule, in_float: GraphModule) -> None:
        self._quantized, self._in_float = quantized, in_float
        names = {node.name for node in quantized.graph.nodes if not is_quantizer(node)}
        self.counterparts = {node.name: node for node in in_float.graph.nodes if node.name in names}

    def reads_quantized(self, node: Node) -> bool:
        """Return whether ``node`` of the quantized graph reads something that has no counterpart."""
        return any(source.name not in self.counterparts for source in node.all_input_nodes)

    def steps(self, inputs: Inputs, is_asked: Callable[[Node], bool]) -> Iterator[Step]:
        """Yield the nodes that have a counterpart, in order; the caller sees to it that there are no gradients.

        Memory: what a later node still reads, three times.
        """
        floats = self._floats(inputs)
        expected: dict[Node, Any] = {}
        found: dict[Node, Any] = {}
        local: dict[Node, Any] = {}  # of nodes without a counterpart
        gm, given = self._quantized, by_placeholder(self._quantized, inputs)
        dying = last_reads(list(gm.graph.nodes))
        for node in list(gm.graph.nodes):
            has_counterpart = node.name in self.counterparts
            own = None
            if not has_counterpart or is_asked(node):
                own = _compute(gm, node, {**_read(node, expected), **_read(node, local)}, given)
            found[node] = _compute(gm, node, _read(node, found), given)
            if has_counterpart:
                expected[node] = next(value for name, value in floats if name == node.name)
                yield Step(node, expected[node], found[node], own)
            else:
                local[node] = own
            for read in dying.get(node, ()):
                for values in (expected, found, local):
                    values.pop(read, None)

    def _floats(self, inputs: Inputs) -> Iterator[tuple[str, Any]]:
        """Yield name and value of the float graph's nodes, as they are asked for."""
        values: dict[Node, Any] = {}
        gm, given = self._in_float, by_placeholder(self._in_float, inputs)
        dying = last_reads(list(gm.graph.nodes))
        for node in gm.graph.nodes:
            values[node] = _compute(gm, node, _read(node, values), given)
            yield node.name, values[node]
            for read in dying.get(node, ()):
                values.pop(read, None)


def _read(node: Node, values: Mapping[Node, Any]) -> dict[Node, Any]:
    return {source: values[source] for source in node.all_input_nodes if source in values}


def _compute(gm: GraphModule, node: Node, read: Mapping[Node, Any], given: Mapping[str, Any]) -> Any:
    if node.op == "placeholder":  # a node may write into it, and neither side may see the other's writing
        return pytree.tree_map_only(Tensor, torch.clone, given[node.name])
    args, kwargs = map_arg((node.args, node.kwargs), read.__getitem__)
    return function_of(gm, node, {})(*args, **kwargs)
