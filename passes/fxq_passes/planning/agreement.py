"""Whether the demands on the ranges of tied tensors can be met together; errors name both tensors."""

from collections.abc import Sequence

from torch.fx import Node

from fxq import QuantDescriptor, Rewriter, TargetError
from fxq.graph import Edge, inserted_for, is_quantized, is_quantizer, kind, planned_input, planned_output
from fxq.targets import Fixed


def check_agreement(rw: Rewriter, node: Node, edges: Sequence[Edge]) -> None:
    """Raise a TargetError if the tensors that ``node`` ties cannot have one range."""
    by_hand = [edge for edge in edges if _is_fixed_by_hand(rw, edge.producer)]
    planned = [edge for edge in edges if is_quantized(edge)]
    if by_hand and planned:
        raise _conflict(
            rw,
            node,
            f"{by_hand[0].producer.name!r} is a quantizer placed by hand with a fixed range, and "
            f"{planned[0].producer.name!r} is calibrated",
        )
    formats = [(edge.producer, _format(edge)) for edge in planned]
    output = planned_output(node) if "output" in rw.target.same(kind(node)) else None
    if output is not None:
        formats.append((node, output.descriptor))
    for tensor, descriptor in formats[1:]:
        first, wanted = formats[0]
        if _without_range(descriptor) != _without_range(wanted):
            raise _conflict(rw, node, f"{first.name!r} is planned as {wanted}, and {tensor.name!r} as {descriptor}")


def fixed_range(rw: Rewriter, tensors: Sequence[Node]) -> Fixed | None:
    """Return the range that tied tensors are fixed to, None if it follows from the data.

    Raises:
        TargetError: they are fixed to two ranges, or only some of them are.
    """
    ranges = [(node, rw.target.fixed(kind(node))) for node in tensors]
    first = next(((node, fixed) for node, fixed in ranges if fixed is not None), None)
    if first is None:
        return None
    node, found = first
    assert found is not None
    for other, fixed in ranges:
        if fixed is None or (fixed.low, fixed.high) != (found.low, found.high):
            theirs = "is calibrated" if fixed is None else f"is fixed to {_interval(fixed)}"
            raise TargetError(
                f"target {rw.target.name!r} wants one range for {node.name!r} and {other.name!r}, which meet without "
                f"rescaling: {node.name!r} ({kind(node)}) is fixed to {_interval(found)}, and {other.name!r} "
                f"({kind(other)}) {theirs}; leave what joins them in float (a rule with None)"
            )
    return found


def _conflict(rw: Rewriter, node: Node, what: str) -> TargetError:
    return TargetError(
        f"target {rw.target.name!r} wants one range for what {node.name!r} ({kind(node)}) joins: {what}; give them one "
        f"descriptor, or leave {node.name!r} in float (a rule with None)"
    )


def _is_fixed_by_hand(rw: Rewriter, node: Node) -> bool:
    return is_quantizer(node) and not inserted_for(node) and rw.module(node).descriptor.is_fixed


def _format(edge: Edge) -> QuantDescriptor:
    plan = planned_input(edge) or planned_output(edge.producer)
    assert plan is not None
    return plan.descriptor


def _without_range(descriptor: QuantDescriptor) -> QuantDescriptor:
    return descriptor.replace(amax=None, range=None, name=None)


def _interval(fixed: Fixed) -> str:
    return f"[{fixed.low:g}, {fixed.high:g}]"
