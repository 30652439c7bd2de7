"""Rewrite the plans of tensors whose range the target fixes."""

from collections.abc import Sequence

from torch.fx import Node

from fxq import Rewriter
from fxq.graph import is_quantizer, output_edges, planned_input, planned_output
from fxq.targets import Fixed


def fix_plans(rw: Rewriter, tensors: Sequence[Node], fixed: Fixed) -> None:
    """Give each plan that quantizes one of the tensors, where it is made or read, the fixed range."""
    for tensor in tensors:
        output = planned_output(tensor)
        if output is not None and output.descriptor != fixed.applied(output.descriptor):
            rw.plan_output(tensor, fixed.applied(output.descriptor), f"{output.why}; {fixed.reason}")
        for edge in output_edges(tensor):
            plan = None if is_quantizer(edge.consumer) else planned_input(edge)
            if plan is not None and plan.descriptor != fixed.applied(plan.descriptor):
                descriptor = fixed.applied(plan.descriptor)
                rw.plan_input(edge.consumer, edge.position, descriptor, f"{plan.why}; {fixed.reason}", role=plan.role)
