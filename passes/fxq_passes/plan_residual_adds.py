"""Residual adds: quantize the input that the fused convolution does not compute.

A convolution absorbs the add behind it. The fused kernel can write int8 only if its other input, the residual, is
int8 as well; the convolution's own side is never stored, so a quantizer there would cost accuracy for nothing.
Source: TensorRT developer guide, "Q/DQ Placement Recommendations"; NVIDIA's hand-edited ResNet.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from torch.fx import Node

from fxq import EXACT, Pass, Rewriter, Stage, register_pass
from fxq.graph import (
    ACTIVATIONS,
    MOVES_DATA,
    Edge,
    ancestors,
    has_one_reader,
    input_edges,
    is_add,
    is_constant,
    is_quantizer,
    kind,
    planned_inside,
    produces_tensor,
    shape_of,
    tensor_edges,
)
from fxq.nn import Quantized
from fxq_passes.planning.infinities import infinite_values
from fxq_passes.planning.plan_questions import activation_descriptor

_CONVOLUTIONS = frozenset({"conv", "conv_transpose"})
# What may stand between a convolution and the add that it absorbs; mul and div by constants are scaling.
_IN_EPILOGUE = ACTIVATIONS | MOVES_DATA | {"batch_norm", "dropout", "identity", "mul", "div"}


@register_pass("plan_residual_adds")
@dataclass(frozen=True)
class PlanResidualAdds(Pass):
    """Plan a quantizer on the residual input of each add that the target fuses into a convolution."""

    stage = Stage.PLANNED
    tolerance = EXACT

    def run(self, rw: Rewriter) -> None:
        """Find the convolution's side of each add; plan the other side."""
        if not rw.target.quantizes_inputs("add", "absorbed_by_conv"):
            return
        infinite = infinite_values(rw)
        for add in rw.nodes(is_add):
            reason = _why_not(rw, add, infinite)
            fused = _fused_side(rw, add) if reason is None else None
            if reason is not None or fused is None:
                rw.skip(add, reason or "no input comes from a convolution that only this add reads")
                continue
            residual = next(edge for edge in tensor_edges(add) if edge != fused)
            if is_quantizer(residual.producer):
                rw.skip(add, "its residual input is quantized by hand")
                continue
            why = f"residual input of an add that {_convolution_of(fused.producer)} absorbs"
            rw.plan_input(add, residual.position, activation_descriptor(rw, add), why, role="residual")
            _plan_pool(rw, residual, infinite)


def _why_not(rw: Rewriter, add: Node, infinite: Mapping[Node, str]) -> str | None:
    """Return why this add is no residual add, None if it may be one."""
    first, second = tensor_edges(add)
    if rw.config(add) is None:
        return f"rule {rw.settings.rule_for(add)} leaves it in float"
    if first.producer in infinite or second.producer in infinite:
        return infinite.get(first.producer) or infinite[second.producer]
    if first.producer is second.producer:
        return "both inputs are the same tensor"
    shapes = [shape_of(edge.producer) for edge in (first, second)]
    if None not in shapes and shapes[0][1:] != shapes[1][1:]:  # type: ignore[index]
        return f"its inputs broadcast: {shapes[0]} and {shapes[1]}"
    if is_constant(first.producer) or is_constant(second.producer):
        return "one input is a parameter or constant"
    return None


def _fused_side(rw: Rewriter, add: Node) -> Edge | None:
    """Return the edge whose convolution absorbs the add, None if neither has one."""
    sides = [edge for edge in tensor_edges(add) if _absorbs(rw, edge)]
    if len(sides) < 2:
        return sides[0] if sides else None
    # Both have one, as in a down-sample block: the longer path is the block's body. On a tie, the second input.
    first, second = tensor_edges(add)
    return first if _path_length(first, second) > _path_length(second, first) else second


def _absorbs(rw: Rewriter, edge: Edge) -> bool:
    convolution = _convolution_of(edge.producer)
    if convolution is None:
        return False
    # A convolution that runs in float absorbs in float.
    return bool(planned_inside(convolution)) or isinstance(rw.module(convolution), Quantized)


def _convolution_of(node: Node) -> Node | None:
    """Walk back from an input of an add to the convolution that only this path reads, None if there is none."""
    while has_one_reader(node):
        if kind(node) in _CONVOLUTIONS:
            return node
        inputs = [edge.producer for edge in tensor_edges(node) if not is_constant(edge.producer)]
        if kind(node) not in _IN_EPILOGUE or len(inputs) != 1:
            return None
        node = inputs[0]
    return None


def _path_length(edge: Edge, other: Edge) -> int:
    """Return the distance in nodes from the add to the lowest common ancestor of both sides, along ``edge``.

    Both sides are walked back step by step, and no further than the ancestor may be.
    """
    mine, theirs = ancestors(edge.producer), ancestors(other.producer)
    distances: tuple[dict[Node, int], dict[Node, int]] = ({}, {})
    nearest: tuple[int, int] | None = None  # nodes on both sides, nodes on this side
    for steps, layers in enumerate(itertools.zip_longest(mine, theirs, fillvalue=())):
        if nearest is not None and steps > nearest[0]:
            break
        for found, layer in zip(distances, layers, strict=True):
            found.update(dict.fromkeys(layer, steps))
        for node in {*layers[0], *layers[1]}:
            if all(node in found for found in distances):
                one, two = (found[node] for found in distances)
                nearest = min(nearest or (one + two, one), (one + two, one))
    return nearest[1] if nearest else len(distances[0])


def _plan_pool(rw: Rewriter, residual: Edge, infinite: Mapping[Node, str]) -> None:
    """Plan a max pool that only the residual branch reads: it runs in int8 only with its own quantizer (ResNet v2)."""
    pool = residual.producer
    if kind(pool) != "max_pool" or not has_one_reader(pool) or rw.config(pool) is None:
        return
    source = next(edge for edge in input_edges(pool) if produces_tensor(edge.producer))
    if source.producer in infinite:
        rw.skip(pool, infinite[source.producer])
    elif not is_quantizer(source.producer):
        rw.plan_input(pool, source.position, activation_descriptor(rw, pool), "max pool on a residual branch")
