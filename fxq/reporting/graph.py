"""The graph as it is drawn: operations, and between them tensors that are quantized or not.

Quantizers, quantize and dequantize nodes are no operations here: they make an edge a quantized one. Stored tensors and
sizes are left out.
"""

from collections.abc import Mapping

from torch.fx import GraphModule, Node

from fxq.explanation import Explanation, NodeExplanation
from fxq.graph.kinds import kind, produces_values, shape_of
from fxq.graph.match import input_edges, is_quantizer, rule_path
from fxq.quant import DEQUANTIZE, DEQUANTIZE_LOW_BIT, QUANTIZE
from fxq.reporting.content import GraphEdge, GraphNode

_ENDS = {"placeholder": "input", "output": "output"}
_CODES = (QUANTIZE, DEQUANTIZE, DEQUANTIZE_LOW_BIT)


def draw_graph(gm: GraphModule, explanation: Explanation) -> tuple[list[GraphNode], list[GraphEdge]]:
    """Return the operations of a prepared or converted graph in graph order, and the tensors between them."""
    explained = {one.node: one for one in explanation.nodes}
    drawn = {node: index for index, node in enumerate(filter(_is_drawn, gm.graph.nodes))}
    nodes = [_drawn_node(node, explained) for node in drawn]
    edges: dict[tuple[int, int], str | None] = {}
    for node, target in drawn.items():
        for edge in input_edges(node):
            source, quantizer = _source_of(edge.producer)
            if source in drawn:
                edges.setdefault((drawn[source], target), quantizer or _own_quantizer(nodes[target]))
    return nodes, [GraphEdge(source, target, quantizer) for (source, target), quantizer in edges.items()]


def scale_owner(node: Node) -> str:
    """Return the path of the quantizer that a quantize or dequantize node was, as its scale is stored under it."""
    scale = node.args[1]
    return str(scale.target).removesuffix(".scale") if isinstance(scale, Node) else ""


def _is_drawn(node: Node) -> bool:
    if node.op == "output":
        return True
    if node.op == "placeholder":
        return bool(node.users)
    return node.op != "get_attr" and not _is_between(node) and produces_values(node)


def _is_between(node: Node) -> bool:
    return is_quantizer(node) or node.target in _CODES


def _source_of(producer: Node) -> tuple[Node, str | None]:
    """Return the operation that computes what is read, and the path of the quantizer on the way."""
    quantizer = None
    while _is_between(producer):
        if quantizer is None and producer.target is not QUANTIZE:
            quantizer = str(producer.target) if is_quantizer(producer) else scale_owner(producer)
        producer = producer.all_input_nodes[0]
    return producer, quantizer


def _own_quantizer(node: GraphNode) -> str | None:
    """Return the quantizer that a module has for its input itself."""
    own = (one.quantizer for one in node.quantized if one.role == "input" and one.position is None)
    return next(own, None)


def _drawn_node(node: Node, explained: Mapping[str, NodeExplanation]) -> GraphNode:
    found = explained.get(node.name)
    word = _ENDS.get(node.op) or kind(node)
    word = word if word != "other" else str(getattr(node.target, "__name__", node.target))
    return GraphNode(
        node=node.name,
        path=str(node.target) if node.op in _ENDS else found.path if found else rule_path(node),
        kind=found.kind if found and node.op not in _ENDS else word,
        shape=shape_of(node),
        quantized=found.quantized if found else (),
        reason=found.reason if found else "",
    )
