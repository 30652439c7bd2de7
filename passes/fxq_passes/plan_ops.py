"""Decide which weights, inputs and outputs of which operations the target wants quantized."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch.fx import Node

from fxq import EXACT, Pass, QuantDescriptor, Rewriter, Stage, register_pass
from fxq.graph import (
    ACTIVATIONS,
    Edge,
    input_edges,
    is_quantizer,
    is_weighted,
    kind,
    only_reader,
    output_edges,
    planned_inputs,
    planned_inside,
    shape_of,
    tensor_edges,
)
from fxq.nn import InputQuantized, ManyQuantized, Quantized
from fxq_passes.folding.computed_weights import weight_expressions
from fxq_passes.planning.infinities import infinite_values, masking_adds
from fxq_passes.planning.layers import LayerOptions, LayerPlanner
from fxq_passes.planning.normalizations import normalizations
from fxq_passes.planning.plan_questions import (
    ELEMENTWISE,
    activation_descriptor,
    check_placed_by_hand,
    comes_from_conv,
    float_source,
    is_never_negative,
    is_quantized_by_hand,
    is_read_in_integers,
    is_read_quantized,
    is_sliced_for_integers,
    is_stored_product,
    kept_in_float,
    output_descriptor,
    takes_quantized_input,
    weight_descriptor,
)
from fxq_passes.planning.relative_sizes import read_by_relative_size

# Comparing, indexing and shape arithmetic are not worth a line in the report.
_SILENT = frozenset({"placeholder", "output", "get_attr", "getattr", "shape", "quantizer"})


@register_pass("plan_ops")
@dataclass(frozen=True)
class PlanOps(Pass):
    """Plan quantizers on the weights, inputs and outputs of the operations that the target runs in integers.

    Modules that a rule gives a QConfig are planned too: poolings and instance norms for all targets, embeddings,
    recurrent layers and attention for those that do not store them as integers anyway.

    Args:
        min_channels: leave convolutions with fewer input or output channels in float.
        depthwise: also plan depthwise convolutions, which some targets run no faster in int8.
    """

    stage = Stage.PLANNED
    tolerance = EXACT
    min_channels: int = 0
    depthwise: bool = True

    def run(self, rw: Rewriter) -> None:
        """Plan operations that stand for themselves first, then those that depend on their neighbours."""
        layers = LayerPlanner(rw, LayerOptions(self.min_channels, self.depthwise))
        for node in rw.nodes(lambda node: node.op == "call_module"):
            check_placed_by_hand(rw, node)
        infinite = {reader: why for value, why in infinite_values(rw).items() for reader in value.users}
        in_float = kept_in_float(rw) | read_by_relative_size(rw) | normalizations(rw) | masking_adds(rw) | infinite
        for expression in weight_expressions(rw):
            in_float |= dict.fromkeys(expression.nodes, "computes a weight")
        kinds = {node: kind(node) for node in rw.nodes()}  # planning changes none
        for node in rw.nodes(lambda node: kinds[node] not in _SILENT):
            if layers.is_layer(node):
                reason = layers.why_not(node)
                if reason is not None:
                    rw.skip(node, reason)
                if not isinstance(rw.module(node), Quantized):
                    if reason is not None:
                        continue
                    layers.plan(node)
            _plan_node(rw, node, in_float.get(node))
        for node in rw.nodes(lambda node: rw.target.quantizes_output(kinds[node], "read_in_integers")):
            _plan_read_output(rw, node)
        for node in rw.nodes(lambda node: rw.target.quantizes_output(kinds[node], "sliced_for_integers")):
            if planned_inputs(node) and is_sliced_for_integers(rw, node):
                _plan_output(rw, node)
        formats = _formats_read(rw)
        for node in reversed(rw.nodes(lambda node: rw.target.quantizes_inputs(kinds[node], "all_readers_quantized"))):
            _plan_surrounded(rw, node, infinite.get(node), formats)


def _plan_node(rw: Rewriter, node: Node, why_in_float: str | None) -> None:
    """Plan the inputs and the output of one operation."""
    target, is_product = rw.target, is_stored_product(rw, node)
    found = "linear" if is_product else kind(node)
    takes_input = takes_quantized_input(rw, node, found)
    is_own = takes_input or is_product or target.quantizes_output(found)
    is_after_conv = target.quantizes_inputs(found, "after_conv") and comes_from_conv(node)
    if not (is_own or is_after_conv):
        return
    reason = why_in_float or _why_not(rw, node)
    if reason is not None:
        rw.skip(node, reason)
        return
    if is_after_conv:
        _plan(rw, tensor_edges(node)[:1], f"input of a {found} that a convolution computes")
    if is_product:
        _plan_stored(rw, node)
    if takes_input:
        edges = tensor_edges(node)[:1] if is_product else tensor_edges(node)
        _plan(rw, edges, f"{target.name} runs {found} on quantized inputs")
    if target.quantizes_output(found):
        _plan_output(rw, node)


def _why_not(rw: Rewriter, node: Node) -> str | None:
    """Return why the operation stays in float, None if it is quantized."""
    if rw.config(node) is None:
        return f"rule {rw.settings.rule_for(node)} leaves it in float"
    if is_weighted(node) and not (planned_inside(node) or isinstance(rw.module(node), Quantized)):
        return f"{rw.target.name} does not quantize its weight"
    edges = tensor_edges(node)
    if kind(node) in ELEMENTWISE and len(edges) < 2:
        return "one operand is a number"
    is_requested = rw.settings.is_requested(node)
    if kind(node) in ACTIVATIONS and not is_requested and (source := float_source(rw, node)) is not None:
        return f"{source.name!r} gives it floats, which a quantizer before it would round once more"
    for edge in edges:
        value = edge.producer.meta.get("val")
        if isinstance(value, torch.Tensor) and not value.is_floating_point():
            return f"input {edge.producer.name!r} is {value.dtype}"
    if kind(node) == "matmul" and any(len(shape_of(edge.producer) or (0, 0)) < 2 for edge in edges):
        return "matrix times vector gains nothing in integers"
    if kind(node) == "matmul" and rw.target.is_dynamic and any(_has_fixed_range(rw, edge) for edge in edges):
        return "one operand is quantized by hand, with a range that is not dynamic"
    return None


def _has_fixed_range(rw: Rewriter, edge: Edge) -> bool:
    return is_quantizer(edge.producer) and not rw.module(edge.producer).descriptor.is_dynamic


def _plan_stored(rw: Rewriter, node: Node) -> None:
    """Plan the stored matrix of a product: a weight, whose output channels are its columns."""
    weight = tensor_edges(node)[1]
    descriptor = weight_descriptor(rw, node, channel_axis=1)
    rw.plan_input(node, weight.position, descriptor, "multiplies by a stored matrix: its weight", role="weight")


def _plan(rw: Rewriter, edges: list[Edge], why: str) -> None:
    for edge in edges:
        # A weighted layer's second input is an output size; its weight has a quantizer of its own.
        if is_quantized_by_hand(rw, edge.producer):
            rw.skip(edge.consumer, f"input {edge.position} is quantized by hand")
        elif _quantizes_itself(rw, edge.consumer):
            rw.skip(edge.consumer, f"input {edge.position} has the module's own quantizer")
        else:
            descriptor = activation_descriptor(rw, edge.consumer, may_be_negative=not is_never_negative(edge.producer))
            rw.plan_input(edge.consumer, edge.position, descriptor, why)


def _quantizes_itself(rw: Rewriter, node: Node) -> bool:
    """Return whether the module of ``node`` quantizes its inputs inside, by hand or by plan."""
    if any(plan.role != "weight" for plan in planned_inside(node).values()):
        return True
    module = rw.module(node) if node.op == "call_module" else None
    if isinstance(module, InputQuantized):
        return module.input_quantizer is not None
    return isinstance(module, ManyQuantized) and any(True for _ in module.activations())


def _plan_output(rw: Rewriter, node: Node) -> None:
    """Plan the output behind the activations that the target computes in the epilogue of ``node``."""
    last = node
    reader = only_reader(last)
    while reader is not None and kind(reader) in rw.target.fused_activations:
        last, reader = reader, only_reader(reader)
    is_returned = any(edge.consumer.op == "output" for edge in output_edges(last))
    if is_returned and not rw.target.file.quantized_outputs_allowed:
        rw.skip(node, "the model returns it")
        return
    why = f"{rw.target.name} runs {kind(node)} with a quantized output"
    behind = "" if last is node else f", quantized behind {last.name!r}, which the quantizer's clamp absorbs"
    rw.plan_output(last, output_descriptor(rw, node, last), why + behind)


def _plan_read_output(rw: Rewriter, node: Node) -> None:
    """Plan the output of an operation that gives floats as well, where something reads codes."""
    if not planned_inputs(node):
        return  # it stays in float, which is on record
    if is_read_in_integers(rw, node):
        _plan_output(rw, node)
    else:
        rw.skip(node, f"nothing that reads its output computes in integers, and {rw.target.name} gives it in float")


def _formats_read(rw: Rewriter) -> dict[Node, set[QuantDescriptor]]:
    """Return by which descriptors the readers of each node quantize it."""
    found: dict[Node, set[QuantDescriptor]] = defaultdict(set)
    for consumer in rw.nodes(lambda node: bool(planned_inputs(node))):
        edges = input_edges(consumer)
        for position, plan in planned_inputs(consumer).items():
            found[edges[position].producer].add(plan.descriptor)
    return found


def _plan_surrounded(
    rw: Rewriter, node: Node, why_in_float: str | None, formats: dict[Node, set[QuantDescriptor]]
) -> None:
    """Plan the inputs of an operation that runs in integers only if all that read it do."""
    if why_in_float is not None:
        rw.skip(node, why_in_float)
    elif rw.config(node) is None:
        rw.skip(node, f"rule {rw.settings.rule_for(node)} leaves it in float")
    elif not is_read_quantized(node):
        rw.skip(node, "not all that read it take quantized input: all operands or none")
    else:
        descriptor, edges = activation_descriptor(rw, node), tensor_edges(node)
        if not is_read_quantized(node, descriptor) or any(formats[edge.producer] - {descriptor} for edge in edges):
            rw.skip(node, "what reads it, or what it reads, takes another format, and ranges are shared in one alone")
            return
        _plan(rw, edges, f"{kind(node)} read by quantized operations only")
        for edge in edges:
            formats[edge.producer].add(descriptor)
