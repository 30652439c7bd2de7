"""A weight in integers is of no use without its input in integers, nor the input without the weight."""

from torch.fx import Node

from fxq import Rewriter
from fxq.graph import is_quantized, is_weighted, kind, planned_inputs, plans_of, tensor_edges
from fxq.nn import Quantized
from fxq_passes.planning.plan_questions import is_quantized_by_hand


def drop_halves(rw: Rewriter) -> None:
    """Take back the weight planned without its input, or the reverse, where the target needs both; say why."""
    layers: dict[str, list[Node]] = {}  # by what holds the weight: a module, or the product with a stored matrix
    for node in rw.nodes(lambda node: _takes_both(rw, node)):
        layers.setdefault(str(node.target) if node.op == "call_module" else node.name, []).append(node)
    for calls in layers.values():
        # A module is one for all of its calls: one with a quantized input is enough to keep its weight.
        has_weight = any(plan.role == "weight" for node in calls for plan in plans_of(node).values())
        has_input = any(_reads_quantized(rw, node) for node in calls)
        for node in calls:
            if has_weight and not has_input:
                _drop(rw, node, "weight", "its input is not quantized, so its weight stays in float too")
            elif has_input and not has_weight:
                _drop(rw, node, "input", "its weight stays in float, so its input is not quantized for it")


def _takes_both(rw: Rewriter, node: Node) -> bool:
    if is_weighted(node):
        return rw.target.has_integer_form(kind(node)) and not isinstance(rw.module(node), Quantized)
    is_product = any(plan.role == "weight" for plan in planned_inputs(node).values())
    return is_product and rw.target.quantizes_inputs("linear")


def _reads_quantized(rw: Rewriter, node: Node) -> bool:
    edges = tensor_edges(node)
    edge = next((one for one in edges if one.producer.op != "get_attr"), edges[0])  # a stored matrix may stand first
    return is_quantized(edge) or is_quantized_by_hand(rw, edge.producer)


def _drop(rw: Rewriter, node: Node, role: str, reason: str) -> None:
    for slot, plan in plans_of(node).items():
        if plan.role == role:
            rw.drop_plan(node, slot, reason)
