"""Who reads what: the changes of arguments that the Rewriter makes. Nobody else calls these."""

import operator
from collections.abc import Collection, Iterator
from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxq.graph.match import Edge, input_edges, output_edges


def read_instead(edge: Edge, new: Node) -> None:
    """Let one argument of the edge's consumer read ``new``; other arguments that read the same producer stay."""
    positions = iter(range(len(input_edges(edge.consumer))))

    def swap(node: Node) -> Node:
        return new if next(positions) == edge.position else node

    args, kwargs = map_arg((edge.consumer.args, edge.consumer.kwargs), swap)
    edge.consumer.args, edge.consumer.kwargs = args, kwargs


def hand_over(node: Node, value: Any) -> Iterator[Node]:
    """Let the readers of ``node`` read ``value``, nodes in its structure; yield those that took an item out of it."""
    if isinstance(value, Node):
        if "val" in node.meta:
            value.meta["val"] = node.meta["val"]  # what is lowered next asks for shapes
        node.replace_all_uses_with(value)
        return
    for reader in list(node.users):
        if reader.target is operator.getitem and isinstance(index := reader.args[1], int):
            yield from hand_over(reader, value[index])
            yield reader
        else:
            reader.args, reader.kwargs = map_arg(
                (reader.args, reader.kwargs), lambda other: value if other is node else other
            )


def take_out(gm: GraphModule, names: Collection[str]) -> None:
    """Erase the nodes of these names, each a call of a module of its own on one tensor; readers read that tensor."""
    for node in [node for node in gm.graph.nodes if node.name in names]:
        node.replace_all_uses_with(node.all_input_nodes[0])
        gm.graph.erase_node(node)
        # The next calibration inserts it under the same name: files of the same calibration are the same.
        gm.graph._graph_namespace._used_names.discard(node.name)
        gm.delete_submodule(str(node.target))
    if names:
        gm.recompile()


def put_in(
    gm: GraphModule, call: tuple[str, str], reads: str, behind: str, readers: Collection[tuple[str, int]]
) -> None:
    """Insert again what :func:`take_out` would erase.

    Args:
        gm: has the module already; not recompiled.
        call: name of the node, and path of the module that it calls.
        reads: name of the node whose value it takes.
        behind: name of the node behind which it stood.
        readers: name and position (see Edge) of each argument that reads it instead.
    """
    nodes = {node.name: node for node in gm.graph.nodes}
    name, path = call
    with gm.graph.inserting_after(nodes[behind]):
        new = gm.graph.call_module(path, (nodes[reads],))
    new.name, new.meta = name, inherited_meta(nodes[reads])
    for edge in output_edges(nodes[reads]):
        if edge.consumer is not new and (edge.consumer.name, edge.position) in readers:
            read_instead(edge, new)


def inherited_meta(node: Node) -> dict[str, Any]:
    """Return the meta of ``node`` that also holds for a node inserted behind it.

    No plans; and no ``is_wrapped``, which has generated code register the called function with torch.fx by its name,
    for the rest of the process.
    """
    return {key: value for key, value in node.meta.items() if not key.startswith("fxq_") and key != "is_wrapped"}


def last_of_kind(producer: Node) -> Node:
    """Return the last placeholder for a placeholder: FX keeps them together at the top."""
    while producer.op == "placeholder" and producer.next.op == "placeholder":
        producer = producer.next
    return producer
