"""What planning passes ask about a node's neighbours, and which descriptor it gets."""

from torch.fx import Node

from fxq import QuantDescriptor, Rewriter
from fxq.graph import ACTIVATIONS, MOVES_DATA, is_quantized, kind, output_edges, produces_tensor

ELEMENTWISE = frozenset({"add", "sub", "mul", "div"})


def activation_descriptor(rw: Rewriter, node: Node) -> QuantDescriptor:
    """Return the descriptor of the activations that ``node`` reads or makes; no rule leaves ``node`` in float.

    Raises:
        TargetError: the target cannot run it.
    """
    config = rw.config(node)
    assert config is not None
    assert config.activation is not None
    rule = rw.settings.rule_for(node)
    where = repr(str(node.target) if node.op == "call_module" else node.name)
    rw.target.check_activation(
        config.activation, f"{where} ({f'rule {rule}' if rule else 'the default of the recipe'})"
    )
    return config.activation


def float_stream(rw: Rewriter) -> dict[Node, str]:
    """Return the elementwise operations and concatenations that stay in float for what reads them, with reasons."""
    found: dict[Node, str] = {}
    for node in reversed(rw.nodes(lambda node: kind(node) in ELEMENTWISE | {"cat"})):
        for reader in node.users:
            if kind(reader) in rw.target.float_readers:
                found[node] = (
                    f"{reader.name!r} ({kind(reader)}) reads it in float: so does the stream that it is part of"
                )
            elif reader in found:
                found[node] = found[reader]
    return found


def is_read_quantized(node: Node) -> bool:
    """Return whether all that read ``node`` take quantized input, or pass it on to such."""
    edges = [edge for edge in output_edges(node) if edge.consumer.op == "output" or produces_tensor(edge.consumer)]
    return bool(edges) and all(
        is_quantized(edge) or (kind(edge.consumer) in MOVES_DATA | {"max_pool"} and is_read_quantized(edge.consumer))
        for edge in edges
    )


def comes_from_conv(node: Node) -> bool:
    """Return whether a convolution computes the input of ``node``, activations and copies aside."""
    producer = node.all_input_nodes[0]
    while kind(producer) in MOVES_DATA | ACTIVATIONS and len(producer.users) == 1 and producer.all_input_nodes:
        producer = producer.all_input_nodes[0]
    return kind(producer) in ("conv", "conv_transpose")


def feeds_softmax(node: Node) -> bool:
    """Return whether softmax alone reads ``node``."""
    readers = list(node.users)
    return bool(readers) and all(kind(reader) == "softmax" for reader in readers)
