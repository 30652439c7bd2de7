"""Carry out the plans: quantized modules, and one quantizer for each tensor, shared by all that read it."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node

from fxq import Pass, PassError, QuantDescriptor, Rewriter, Stage, TensorQuantizer, register_pass
from fxq.graph import (
    Edge,
    Plan,
    free_path,
    is_quantizer,
    kind,
    note_inserted,
    output_edges,
    owner_path,
    planned_input,
    planned_output,
    produces_tensor,
    range_group,
)
from fxq_passes.planning.halves import drop_halves
from fxq_passes.planning.swap import swap_modules


@register_pass("insert_quantizers")
@dataclass(frozen=True)
class InsertQuantizers(Pass):
    """Swap the modules with plans inside of them, and insert quantizers: one for each tensor, or group with one range.

    Weights tied between modules get one quantizer.
    """

    stage = Stage.PREPARED

    def run(self, rw: Rewriter) -> None:
        """Insert quantizers that are disabled until attach_observers: this pass changes no numbers.

        Here is the last look at the plans: that of a weight without its input, or the reverse, is not carried out.
        """
        drop_halves(rw)
        swap_modules(rw)
        shared: dict[str, tuple[str, TensorQuantizer, QuantDescriptor]] = {}  # by range group
        for producer in rw.nodes():
            readings: dict[QuantDescriptor, list[tuple[Edge, Plan]]] = {}
            for edge, plan in _planned_readings(rw, producer):
                readings.setdefault(plan.descriptor, []).append((edge, plan))
            for descriptor, found in readings.items():
                _insert(rw, producer, descriptor, found, shared)


def _planned_readings(rw: Rewriter, producer: Node) -> Iterator[tuple[Edge, Plan]]:
    output = None if is_quantizer(producer) else planned_output(producer)
    for edge in output_edges(producer):
        plan = planned_input(edge)
        if is_quantizer(producer) or is_quantizer(edge.consumer):
            continue  # done before, or by hand
        if plan is None and output is not None and _reads_values(rw, edge):
            plan = output
        if plan is not None:
            yield edge, plan


def _reads_values(rw: Rewriter, edge: Edge) -> bool:
    if edge.consumer.op == "output":
        return rw.target.file.quantized_outputs_allowed
    return kind(edge.consumer) not in ("shape", "getattr") or produces_tensor(edge.consumer)


def _insert(
    rw: Rewriter,
    producer: Node,
    descriptor: QuantDescriptor,
    found: list[tuple[Edge, Plan]],
    shared: dict[str, tuple[str, TensorQuantizer, QuantDescriptor]],
) -> None:
    edges, plans = [edge for edge, _ in found], tuple(dict.fromkeys(plan for _, plan in found))
    group = range_group(producer)
    if group is not None and group in shared:
        path, quantizer, first = shared[group]
        if first != descriptor:
            raise PassError(
                f"{producer.name!r} is to share one range with what {path!r} quantizes (group {group!r}), and they are "
                f"planned as {descriptor} and as {first}: one range takes one descriptor; plan them alike, or apart"
            )
    else:
        path = free_path(rw.gm, _quantizer_path(edges[0], plans[0]))
        quantizer = TensorQuantizer(descriptor.replace(name=path), disabled=True)
        if group is not None:
            shared[group] = path, quantizer, descriptor
    node = rw.insert_module_on(edges, path, quantizer, "; ".join(dict.fromkeys(plan.why for plan in plans)))
    note_inserted(node, plans)


def _quantizer_path(edge: Edge, plan: Plan) -> str:
    """Return a path that says where the quantizer stands: beside the module it feeds, or whose output it takes."""
    node = edge.producer if plan.role == "output" else edge.consumer
    if node.op == "call_module":
        return f"{node.target}_{plan.role}_quantizer"
    return f"{owner_path(node)}.{node.name}_{plan.role}_quantizer".lstrip(".")
