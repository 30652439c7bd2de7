"""Graphs and plans as plain data: the plans are put on the nodes of a graph traced anew, the text tells it apart."""

import re
from collections.abc import Mapping
from typing import Any

from torch.fx import GraphModule, Node

from fxq.errors import SavedModelError
from fxq.graph.plan import Plan, note_group, note_plan, plans_of, range_group
from fxq.quant.descriptor import QuantDescriptor

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_MOST_SHOWN = 5


def graph_lines(gm: GraphModule) -> list[str]:
    """Return a line for each node, the same for the same graph in any process."""
    return [_ADDRESS.sub("", _line(node)) for node in gm.graph.nodes]


def plans_to_dict(gm: GraphModule) -> dict[str, Any]:
    """Return what is planned, by the name of the node: its plans, and the group that its output shares a range with."""
    found = {}
    for node in gm.graph.nodes:
        plans, group = plans_of(node), range_group(node)
        if plans or group is not None:
            found[node.name] = {"group": group, "plans": [_plan_to_dict(plan) for plan in plans.values()]}
    return found


def note_plans(gm: GraphModule, planned: Mapping[str, Any]) -> None:
    """Put plans on the nodes of a graph at the stage PLANNED, instead of the passes that made them.

    Raises:
        SavedModelError: the graph lacks a node.
    """
    nodes = {node.name: node for node in gm.graph.nodes}
    absent = [name for name in planned if name not in nodes]
    if absent:
        raise SavedModelError(
            f"the model computes something else than the saved one: its graph has no {', '.join(absent[:_MOST_SHOWN])}"
        )
    for name, fields in planned.items():
        for plan in fields["plans"]:
            note_plan(nodes[name], _plan_from_dict(plan))
        if fields["group"] is not None:
            note_group(nodes[name], fields["group"])


def check_same_graph(gm: GraphModule, lines: list[str]) -> None:
    """Raise a SavedModelError, with the first places where they differ, unless ``gm`` is the graph that was saved."""
    found = graph_lines(gm)
    if found == lines:
        return
    known, there = set(found), set(lines)
    lost = [f"- {line}" for line in lines if line not in known]
    new = [f"+ {line}" for line in found if line not in there]
    shown = "\n".join([*lost[:_MOST_SHOWN], *new[:_MOST_SHOWN]] or ["its operations stand in another order"])
    raise SavedModelError(
        "the model computes something else than the saved one (- saved, + here):\n" + shown + "\nLoad it with the code "
        "of the model, and the versions of torch and fxq, with which it was saved; or prepare and calibrate anew"
    )


def _line(node: Node) -> str:
    target = node.target if isinstance(node.target, str) else _function_name(node.target)
    return f"{node.name} = {node.op} {target} {node.args} {dict(node.kwargs)}"


def _function_name(target: Any) -> str:
    name = getattr(target, "__qualname__", None)
    return f"{getattr(target, '__module__', '')}.{name}" if isinstance(name, str) else str(target)


def _plan_to_dict(plan: Plan) -> dict[str, Any]:
    fields = {"slot": plan.slot, "role": plan.role, "pass": plan.pass_name, "why": plan.why}
    return {**fields, "descriptor": plan.descriptor.to_dict()}


def _plan_from_dict(fields: Mapping[str, Any]) -> Plan:
    descriptor = QuantDescriptor.from_dict(fields["descriptor"])
    return Plan(fields["slot"], descriptor, fields["role"], fields["pass"], fields["why"])
