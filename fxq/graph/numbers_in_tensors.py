"""Numbers in tensors that the model's Python may know while it is traced: what is stored, and sizes."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.fx.proxy import TraceError
from torch.utils._pytree import tree_leaves

from fxq.graph.size_tensors import sizes_in
from fxq.graph.source_lines import user_line
from fxq.graph.stored_values import StoredValues, UnsettledError


class NumbersInTensors:
    """Finds them in the graph that ``tracer``, a ShapeTracer, is making."""

    def __init__(self, tracer: Any) -> None:
        self.stored = StoredValues()
        self._tracer = tracer

    def number_in(self, node: Node, refusal: str) -> Any:
        """Return what is in a tensor of one item: a number that is stored, or a size as a proxy.

        Raises:
            UnsettledError: it may be something else in the next call.
            TraceError: data may reach it; ``refusal`` is the text.
        """
        if node in self.stored:
            return self.value_of_stored(node).item()
        found = self._sizes_in(node)
        if found is None or isinstance(found, list):
            raise TraceError(refusal)
        return found

    def value_of_stored(self, node: Node) -> Any:
        """Return what ``node`` computes, which no input of the model reaches.

        Raises:
            UnsettledError: it may be something else in the next call.
        """
        with self._tracer.evaluating(), self._in_the_model():
            return self.stored.value(node, self._tracer.running, user_line(sys._getframe()))

    def find_out(self, node: Node) -> Any:
        """Return what fake tensors cannot tell of ``node``, which is erased if it is no tensor; None: not known."""
        if node in self.stored:
            with contextlib.suppress(UnsettledError):
                value = self.value_of_stored(node)
                if holds_tensors(value):
                    node.meta["val"] = self._tracer.as_fake(value)
                    return None
                self._tracer.graph.erase_node(node)
                return value
        elif node.op == "call_method" and node.target in ("item", "tolist"):
            value = self._sizes_in(node.all_input_nodes[0])
            if value is not None:
                self._tracer.graph.erase_node(node)
            return value
        return None

    def replace_numbers(self, node: Node) -> bool:
        """Let tensors of one integer be that number among the arguments of ``node``; return whether there are any."""
        numbers: dict[Node, Any] = {}
        for source in filter(_is_one_integer, node.all_input_nodes):
            with contextlib.suppress(UnsettledError, TraceError):
                numbers[source] = self._tracer.create_arg(self.number_in(source, "not known"))
        if numbers:
            next(iter(reversed(self._tracer.graph.nodes))).append(node)  # sizes were read meanwhile
            node.args, node.kwargs = map_arg((node.args, node.kwargs), lambda source: numbers.get(source, source))
        return bool(numbers)

    def _sizes_in(self, node: Node) -> Any:
        with self._in_the_model():
            return sizes_in(node, self._tracer)

    @contextlib.contextmanager
    def _in_the_model(self) -> Iterator[None]:
        """Let questions about nodes find the model's modules, which the graph is not yet part of."""
        graph, before = self._tracer.graph, self._tracer.graph.owning_module
        graph.owning_module = self._tracer.root
        try:
            yield
        finally:
            graph.owning_module = before


def holds_tensors(value: Any) -> bool:
    """Return whether ``value`` is a tensor, or a container with one in it."""
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _is_one_integer(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.numel() == 1 and not (value.is_floating_point() or value.is_complex())
