"""Writes into a tensor that nothing in a graph shows: through ``.data``, into ``out=``, into the tensors of a list."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node

from fxq.errors import TraceError
from fxq.graph.source_lines import line_of


def show_data(graph: Graph) -> None:
    """Write ``x.data`` in ``graph`` as ``x.detach()``, of which exporters know that it is the memory of ``x``."""
    for node in graph.find_nodes(op="call_function", target=getattr):
        source = node.args[0]
        if node.args[1:] == ("data",) and isinstance(source, Node) and isinstance(source.meta.get("val"), Tensor):
            node.op, node.target, node.args = "call_method", "detach", (source,)


def refuse_hidden_writes(nodes: Iterable[Node]) -> None:
    """Refuse what writes into a tensor other than its first argument.

    Raises:
        TraceError: something does; the line is named.
    """
    for node in nodes:
        if node.op != "call_function":
            continue
        name = str(getattr(node.target, "__name__", node.target))
        if name.startswith("_foreach_"):
            raise _refused(
                node, f"torch.{name} computes a list of tensors at once", "call the function for each tensor"
            )
        if _tensors_in(node.kwargs.get("out")):
            raise _refused(node, f"{name}(out=...) writes into another tensor", f"take its result, y = {name}(...)")


def _tensors_in(value: Any) -> bool:
    return isinstance(value, Node) or (isinstance(value, tuple | list) and any(map(_tensors_in, value)))


def _refused(node: Node, what: str, cure: str) -> TraceError:
    path = next((str(entry[0]) for entry in reversed((node.meta.get("nn_module_stack") or {}).values())), "")
    reason = f"{what}, which a graph of quantizers does not follow, in {line_of(node)}"
    return TraceError(f"{reason}. In the model, {cure}", path, reason)
