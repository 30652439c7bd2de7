"""Fulfil what the target demands of the ranges of several tensors.

``Same``: a kernel that reads or moves tensors without rescaling wants one range for all of them. What is tied, directly
or through others, is a connected component of a graph of tensors; a tensor is known by the node that makes it.
``Fixed``: the range of an output is known, and with it that of all that is tied to it. (``Derived`` concerns biases,
which ``lower_to_qdq`` writes.)
"""

from dataclasses import dataclass, field

import networkx as nx
from torch.fx import Node

from fxq import EXACT, Pass, Rewriter, Stage, register_pass
from fxq.graph import is_quantized, is_quantizer, kind, output_edges, planned_output, produces_tensor, tensor_edges
from fxq_passes.planning.agreement import check_agreement, fixed_range
from fxq_passes.planning.fixed_plans import fix_plans
from fxq_passes.planning.halves import drop_halves


@dataclass
class _Ties:
    """Which tensors must have one range, and which of them follow from others."""

    graph: "nx.Graph[Node]" = field(default_factory=nx.Graph)
    followers: set[Node] = field(default_factory=set)

    def add(self, sources: list[Node], follower: Node | None) -> None:
        """Tie the sources to each other, and ``follower`` to them: its values are theirs."""
        tied = sources if follower is None else [*sources, follower]
        nx.add_path(self.graph, tied)
        self.followers.update(tied[len(sources) :])


@register_pass("solve_scales")
@dataclass(frozen=True)
class SolveScales(Pass):
    """Give one range to the tensors that the target wants in one, and fixed ranges to those that have one."""

    stage = Stage.PLANNED
    tolerance = EXACT
    closes_stage = True

    def run(self, rw: Rewriter) -> None:
        """Carry output plans across data movement, join what must agree, then fix what is fixed.

        All plans are known here: what is of use only together with another plan that is missing is taken back.
        """
        ties = _Ties()
        ties.graph.add_nodes_from(rw.nodes(lambda node: rw.target.fixed(kind(node)) is not None))
        joining = rw.nodes(lambda node: bool(rw.target.same(kind(node))) and produces_tensor(node))
        for node in joining:
            _carry(rw, node, ties)
        drop_halves(rw)
        for node in joining:
            _join(rw, node, ties)
        for node in joining:
            _follow(rw, node, ties)
        order = {node: index for index, node in enumerate(rw.gm.graph.nodes)}
        for component in nx.connected_components(ties.graph):
            members = sorted(component, key=order.__getitem__)
            own = [node for node in members if node not in ties.followers or rw.target.fixed(kind(node)) is not None]
            fixed = fixed_range(rw, own)
            if fixed is not None:
                fix_plans(rw, members, fixed)
            if len(members) > 1:
                rw.share_range(members, members[0].name, "no kernel rescales between them")


def _carry(rw: Rewriter, node: Node, ties: _Ties) -> None:
    """Plan the output of what only moves the values of a tensor with a planned output."""
    source = _moved(rw, node)
    plan = None if source is None else planned_output(source)
    if source is None or plan is None:
        return
    is_returned = any(edge.consumer.op == "output" for edge in output_edges(node))
    if is_returned and not rw.target.file.quantized_outputs_allowed:
        return
    rw.plan_output(node, plan.descriptor, f"{kind(node)} only moves the values of {source.name!r}")
    ties.add([source], node)


def _join(rw: Rewriter, node: Node, ties: _Ties) -> None:
    """Tie the tensors of a node all of whose inputs are quantized."""
    edges = tensor_edges(node)
    check_agreement(rw, node, edges)
    if not edges or not all(is_quantized(edge) for edge in edges):
        return
    # Behind insert_quantizers a quantizer stands between; the range is that of the tensor it reads.
    sources = [edge.producer.all_input_nodes[0] if is_quantizer(edge.producer) else edge.producer for edge in edges]
    ties.add(sources, node if "output" in rw.target.same(kind(node)) else None)


def _follow(rw: Rewriter, node: Node, ties: _Ties) -> None:
    """Tie what is quantized of the moved values of a tied tensor: a part of it, which another range would rescale."""
    if not any(is_quantized(edge) for edge in output_edges(node)):
        return
    source = _moved(rw, node)
    while source is not None and source not in ties.followers:
        source = _moved(rw, source)
    if source is not None:
        ties.add([source], node)


def _moved(rw: Rewriter, node: Node) -> Node | None:
    """Return the tensor whose values ``node`` only moves, looking through the tuple of a split or chunk."""
    if "output" not in rw.target.same(kind(node)) or len(tensor_edges(node)) > 1:
        return None
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    while source is not None and kind(source) == "slice" and not produces_tensor(source):
        source = source.all_input_nodes[0] if source.all_input_nodes else None
    return source
