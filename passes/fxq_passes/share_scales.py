"""Tensors that an integer kernel reads or moves without rescaling share one range."""

from dataclasses import dataclass

import networkx as nx
from torch.fx import Node

from fxq import EXACT, Pass, Rewriter, Stage, register_pass
from fxq.graph import is_quantized, is_quantizer, kind, output_edges, planned_output, produces_tensor, tensor_edges
from fxq_passes.planning.halves import drop_halves


@register_pass("share_scales")
@dataclass(frozen=True)
class ShareScales(Pass):
    """Give one range to the inputs of a concatenation, and to the input and output of what only moves data."""

    stage = Stage.PLANNED
    tolerance = EXACT
    closes_stage = True

    def run(self, rw: Rewriter) -> None:
        """Carry output plans across data movement, then join what must agree; groups are connected components.

        All plans are known here: what is of use only together with another plan that is missing is taken back.
        """
        ties = nx.Graph()
        for node in rw.nodes(lambda node: kind(node) in rw.target.keep_scale and produces_tensor(node)):
            _follow(rw, node, ties)
        drop_halves(rw)
        for node in rw.nodes(lambda node: kind(node) in rw.target.share_scale):
            _join(node, ties)
        order = {node: index for index, node in enumerate(rw.gm.graph.nodes)}
        for component in nx.connected_components(ties):
            members = sorted(component, key=order.__getitem__)
            rw.share_range(members, members[0].name, "no kernel rescales between them")


def _follow(rw: Rewriter, node: Node, ties: "nx.Graph[Node]") -> None:
    source = _tensor_source(node)
    plan = None if source is None else planned_output(source)
    if source is None or plan is None:
        return
    is_returned = any(edge.consumer.op == "output" for edge in output_edges(node))
    if is_returned and not rw.target.quantize_graph_outputs:
        return
    rw.plan_output(node, plan.descriptor, f"{kind(node)} only moves the values of {source.name!r}")
    ties.add_edge(source, node)


def _join(node: Node, ties: "nx.Graph[Node]") -> None:
    edges = tensor_edges(node)
    if not all(is_quantized(edge) for edge in edges):
        return
    for edge in edges:
        # Behind insert_quantizers a quantizer stands between; the range is that of the tensor it reads.
        source = edge.producer.all_input_nodes[0] if is_quantizer(edge.producer) else edge.producer
        ties.add_edge(source, node)


def _tensor_source(node: Node) -> Node | None:
    """Return the tensor whose values ``node`` moves, looking through the tuple of a split or chunk."""
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    while source is not None and kind(source) == "slice" and not produces_tensor(source):
        source = source.all_input_nodes[0] if source.all_input_nodes else None
    return source
