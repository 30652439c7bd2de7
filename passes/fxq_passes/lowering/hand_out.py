"""Put values where a node was: what several lowerings need whose layers return tuples."""

import operator
from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg

from fxq import Rewriter


def hand_out(rw: Rewriter, node: Node, value: Any, why: str) -> None:
    """Let the readers of ``node`` read ``value`` instead, and erase ``node``.

    Args:
        rw: whose edit it is.
        node: a call that returns a tensor, or tuples of them.
        value: what it returns, as nodes in the same structure.
        why: the reason.
    """
    _replace(rw, node, value)
    rw.erase(node, why)


def is_item_read(node: Node, index: int) -> bool:
    """Return whether something reads item ``index`` of the tuple that ``node`` returns."""
    return any(not _is_item(reader) or _index(reader) == index for reader in node.users)


def erase_unread(rw: Rewriter, nodes: list[Node]) -> None:
    """Erase those of the inserted ``nodes`` whose values nothing needs."""
    for node in reversed(nodes):
        if not node.users:
            rw.gm.graph.erase_node(node)


def _replace(rw: Rewriter, node: Node, value: Any) -> None:
    if isinstance(value, Node):
        if "val" in node.meta:
            value.meta["val"] = node.meta["val"]  # what is lowered next asks for shapes
        node.replace_all_uses_with(value)
        return
    for reader in list(node.users):
        if _is_item(reader):
            _replace(rw, reader, value[_index(reader)])
            rw.gm.graph.erase_node(reader)
        else:
            reader.args, reader.kwargs = map_arg(
                (reader.args, reader.kwargs), lambda other: value if other is node else other
            )


def _is_item(reader: Node) -> bool:
    return reader.target is operator.getitem and isinstance(reader.args[1], int)


def _index(reader: Node) -> Any:
    return reader.args[1]
