"""Plans: decisions that planning passes note on nodes, for the one pass that inserts quantizers to read.

A node's ``meta`` holds the plans of its inputs by argument position (see :class:`fxq.graph.match.Edge`), the plan of
its output, and the name of the group of tensors that share one range with its output.
"""

from dataclasses import dataclass

from torch.fx import Node

from fxq.graph.match import Edge
from fxq.quant.descriptor import QuantDescriptor

_INPUTS, _OUTPUT, _GROUP, _INSERTED = "fxq_planned_inputs", "fxq_planned_output", "fxq_range_group", "fxq_inserted"


@dataclass(frozen=True)
class Plan:
    """A quantizer to be: what it does, which role it plays, and who asked for it, why.

    ``role`` is "input" (of the node itself), "weight" (a stored tensor that it reads), "residual" (of a fused add) or
    "output".
    """

    descriptor: QuantDescriptor
    role: str
    pass_name: str
    why: str


def planned_inputs(node: Node) -> dict[int, Plan]:
    """Return the plans on the inputs of ``node`` by argument position."""
    return dict(node.meta.get(_INPUTS, {}))


def planned_input(edge: Edge) -> Plan | None:
    """Return the plan on one edge."""
    return planned_inputs(edge.consumer).get(edge.position)


def planned_output(node: Node) -> Plan | None:
    """Return the plan on the output of ``node``."""
    plan: Plan | None = node.meta.get(_OUTPUT)
    return plan


def range_group(node: Node) -> str | None:
    """Return the group of tensors that share one range with the output of ``node``."""
    group: str | None = node.meta.get(_GROUP)
    return group


def inserted_for(node: Node) -> tuple[Plan, ...]:
    """Return the plans that a quantizer node in the graph carries out."""
    return tuple(node.meta.get(_INSERTED, ()))


def note_input(edge: Edge, plan: Plan) -> bool:
    """Note a plan on an edge; return False if it was there already."""
    plans = planned_inputs(edge.consumer)
    if plans.get(edge.position) == plan:
        return False
    edge.consumer.meta[_INPUTS] = {**plans, edge.position: plan}
    return True


def note_output(node: Node, plan: Plan) -> bool:
    """Note a plan on an output; return False if it was there already."""
    if planned_output(node) == plan:
        return False
    node.meta[_OUTPUT] = plan
    return True


def note_group(node: Node, group: str) -> bool:
    """Note the range group of an output; return False if it was there already."""
    if range_group(node) == group:
        return False
    node.meta[_GROUP] = group
    return True


def note_inserted(node: Node, plans: tuple[Plan, ...]) -> None:
    """Note on a quantizer node which plans it carries out."""
    node.meta[_INSERTED] = plans


def is_quantized(edge: Edge) -> bool:
    """Return whether the tensor on this edge is, or is planned to be, quantized."""
    return planned_input(edge) is not None or planned_output(edge.producer) is not None
