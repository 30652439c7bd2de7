"""Questions about nodes. They change nothing."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node
from torch.fx.node import map_arg

from fxq.graph.kinds import MOVES_DATA, kind, module_of, produces_tensor, produces_values
from fxq.nn.tensor_quantizer import TensorQuantizer

_WEIGHTED = frozenset({"conv", "conv_transpose", "linear"})


@dataclass(frozen=True)
class Edge:
    """One reading of one tensor: producer, consumer, and which of the consumer's node arguments it is.

    ``position`` counts every node argument of the consumer in order, lists and keywords included, so that the two
    operands of ``x + x`` are two edges.
    """

    producer: Node
    consumer: Node
    position: int

    def __str__(self) -> str:
        return f"{self.producer} -> {self.consumer}[{self.position}]"


def input_edges(consumer: Node) -> list[Edge]:
    """Return the edges into ``consumer``, in the order of its arguments."""
    return [Edge(producer, consumer, position) for position, producer in enumerate(_producers(consumer))]


def tensor_edges(consumer: Node) -> list[Edge]:
    """Return the edges into ``consumer`` that carry tensors, not sizes."""
    return [edge for edge in input_edges(consumer) if produces_tensor(edge.producer)]


def output_edges(producer: Node) -> list[Edge]:
    """Return the edges out of ``producer``, in graph order of the readers."""
    return [
        Edge(producer, user, position)
        for user in producer.users
        for position, read in enumerate(_producers(user))
        if read is producer
    ]


def has_one_reader(node: Node) -> bool:
    """Return whether exactly one argument of one node reads ``node``."""
    return len(node.users) == 1 and len(output_edges(node)) == 1


def only_reader(node: Node) -> Node | None:
    """Return the one node that reads ``node``, None if there are several or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def is_weighted(node: Node) -> bool:
    """Return whether ``node`` calls a convolution, transposed convolution or linear module."""
    return node.op == "call_module" and kind(node) in _WEIGHTED


def is_add(node: Node) -> bool:
    """Return whether ``node`` adds two tensors."""
    return kind(node) == "add" and len(tensor_edges(node)) == 2


def is_quantizer(node: Node) -> bool:
    """Return whether ``node`` calls a TensorQuantizer."""
    return node.op == "call_module" and isinstance(module_of(node), TensorQuantizer)


def is_constant(node: Node) -> bool:
    """Return whether ``node`` reads a parameter or buffer, reshaped or not."""
    while kind(node) in MOVES_DATA and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node.op == "get_attr"


def ancestors(node: Node) -> Iterator[list[Node]]:
    """Yield the nodes whose values reach ``node``: itself, those one step away, two steps, each at its fewest.

    Sizes and stored tensors are no ancestors: two branches that are reshaped to one batch size do not meet there.
    """
    layer, seen = [node], {node}
    while layer:
        yield layer
        producers = dict.fromkeys(producer for consumer in layer for producer in consumer.all_input_nodes)
        layer = [one for one in producers if one not in seen and produces_values(one) and not is_constant(one)]
        seen.update(layer)


def owner_path(node: Node) -> str:
    """Return the path of the module whose forward holds ``node``; "" for the model itself."""
    stack = node.meta.get("nn_module_stack")
    path = next(reversed(stack.values()))[0] if stack else ""
    if node.op == "call_module" and path == node.target:
        return path.rpartition(".")[0]
    return str(path)


def module_path(node: Node) -> str:
    """Return the path that leads a person to ``node``: the module it calls, or the module whose forward holds it."""
    return str(node.target) if node.op == "call_module" else owner_path(node)


def rule_path(node: Node) -> str:
    """Return the name that a rule has for ``node``: the module it calls, or the function's with that of its owner."""
    return str(node.target) if node.op == "call_module" else f"{owner_path(node)}.{node.name}".lstrip(".")


def _producers(consumer: Node) -> list[Node]:
    """Return the node arguments of ``consumer``, in order, lists and keywords included."""
    found: list[Node] = []
    map_arg((consumer.args, consumer.kwargs), lambda node: found.append(node) or node)  # type: ignore[func-returns-value]
    return found
