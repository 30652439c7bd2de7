"""Plans: decisions that planning passes note on nodes, for the passes that swap modules and insert quantizers to read.

A node's ``meta`` holds its plans by slot: an argument position (see :class:`fxq.graph.match.Edge`), ``"output"``, or
the name of a tensor inside the module that it calls (``"weight"``, ``"weight_ih_l0"``, ``"softmax"``). It also holds
the name of the group of tensors that share one range with its output.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch.fx import GraphModule, Node

from fxq.errors import PassError
from fxq.graph.match import Edge
from fxq.quant.descriptor import QuantDescriptor

_PLANS, _GROUP, _INSERTED, _PART = "fxq_plans", "fxq_range_group", "fxq_inserted", "fxq_part_of"
OUTPUT = "output"
_NONE: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Plan:
    """A quantizer to be.

    Args:
        slot: which tensor of the node: an argument position, "output", or a tensor inside the module that it calls.
        descriptor: how it is quantized.
        role: "input" (of the node itself), "weight" (a stored tensor), "residual" (of a fused add), "inside" (of the
            module's computation) or "output".
        pass_name: who asked for it.
        why: the reason.
    """

    slot: int | str
    descriptor: QuantDescriptor
    role: str
    pass_name: str
    why: str


def plans_of(node: Node) -> dict[int | str, Plan]:
    """Return the plans of ``node`` by slot."""
    return dict(node.meta.get(_PLANS, {}))


def planned_inputs(node: Node) -> dict[int, Plan]:
    """Return the plans on the inputs of ``node`` by argument position."""
    planned = node.meta.get(_PLANS)
    return {slot: plan for slot, plan in planned.items() if isinstance(slot, int)} if planned else {}


def planned_inside(node: Node) -> dict[str, Plan]:
    """Return the plans on tensors inside the module that ``node`` calls, by name."""
    planned = node.meta.get(_PLANS)
    return {slot: plan for slot, plan in planned.items() if isinstance(slot, str) and slot != OUTPUT} if planned else {}


def planned_input(edge: Edge) -> Plan | None:
    """Return the plan on one edge."""
    return edge.consumer.meta.get(_PLANS, _NONE).get(edge.position)  # type: ignore[no-any-return]


def planned_output(node: Node) -> Plan | None:
    """Return the plan on the output of ``node``."""
    return node.meta.get(_PLANS, _NONE).get(OUTPUT)  # type: ignore[no-any-return]


def is_quantized(edge: Edge) -> bool:
    """Return whether the tensor on this edge is, or is planned to be, quantized."""
    return planned_input(edge) is not None or planned_output(edge.producer) is not None


def plans_by_module(gm: GraphModule) -> dict[str, dict[str, Plan]]:
    """Return what is planned inside of each module, by its path: the plans of all its calls together.

    Raises:
        PassError: two calls of one module are planned differently.
    """
    found: dict[str, dict[str, Plan]] = {}
    for node, plan in _inside_plans(gm):
        known = found.setdefault(str(node.target), {}).setdefault(str(plan.slot), plan)
        if known.descriptor != plan.descriptor:
            raise PassError(
                f"{plan.slot!r} of {node.target!r} is planned as {known.descriptor} by {known.pass_name!r} and as "
                f"{plan.descriptor} by {plan.pass_name!r}: calls of one module share its tensors; plan them alike"
            )
    return found


def range_group(node: Node) -> str | None:
    """Return the group of tensors that share one range with the output of ``node``."""
    group: str | None = node.meta.get(_GROUP)
    return group


def inserted_for(node: Node) -> tuple[Plan, ...]:
    """Return the plans that a quantizer node in the graph carries out."""
    return tuple(node.meta.get(_INSERTED, ()))


def note_plan(node: Node, plan: Plan) -> bool:
    """Note a plan on a node; return False if it was there already."""
    plans = plans_of(node)
    if plans.get(plan.slot) == plan:
        return False
    node.meta[_PLANS] = {**plans, plan.slot: plan}
    return True


def forget_plan(node: Node, slot: int | str) -> None:
    """Take a plan back."""
    node.meta[_PLANS] = {known: plan for known, plan in plans_of(node).items() if known != slot}


def note_group(node: Node, group: str) -> bool:
    """Note the range group of an output; return False if it was there already."""
    if range_group(node) == group:
        return False
    node.meta[_GROUP] = group
    return True


def note_inserted(node: Node, plans: tuple[Plan, ...]) -> None:
    """Note on a quantizer node which plans it carries out."""
    node.meta[_INSERTED] = plans


def note_part(node: Node, whole: str) -> None:
    """Note on a node that a pass took an operation apart for it, and the name that a rule has for the whole.

    The name of a part is no name in a model where a rule keeps the whole.
    """
    node.meta[_PART] = whole


def part_of(node: Node) -> str | None:
    """Return the name of the operation that ``node`` is a part of, None where it is none."""
    whole: str | None = node.meta.get(_PART)
    return whole


def _inside_plans(gm: GraphModule) -> Iterator[tuple[Node, Plan]]:
    for node in gm.graph.nodes:
        for plan in planned_inside(node).values():
            yield node, plan
