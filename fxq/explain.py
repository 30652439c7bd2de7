"""Build the explanation of a prepared graph from its plans and the record of what was declined."""

from collections.abc import Mapping
from types import FunctionType

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxq.coverage import coverage_of
from fxq.errors import StageError
from fxq.explanation import Explanation, NodeExplanation, QuantizedTensor
from fxq.graph.kinds import MOVES_DATA, kind, module_of
from fxq.graph.match import is_quantizer, rule_path, tensor_edges
from fxq.graph.plan import Plan, inserted_for, planned_input, planned_output, plans_by_module
from fxq.islands.explanation import explain_islands
from fxq.nn import InputQuantized, Quantized, TensorQuantizer
from fxq.nn.quantized import quantizer_name
from fxq.state import State, check_has_all, find_state

_SILENT = frozenset({"placeholder", "get_attr", "getattr", "shape", "quantizer"})


def explain(model: nn.Module) -> Explanation:
    """Return, for each operation of a prepared or converted model, how its tensors are quantized, or why not.

    Raises:
        StageError: the model did not come from ``fxq.prepare`` or ``fxq.convert``.
    """
    state = find_state(model)
    if state is None or not isinstance(model, GraphModule):
        raise StageError(f"explain takes the result of fxq.prepare or fxq.convert, got {type(model).__name__}")
    check_has_all(model, "explain")
    return state.explanation or explain_graph(model, state)


def explain_graph(gm: GraphModule, state: State) -> Explanation:
    """Return the explanation of a PREPARED graph, of all islands where it has some."""
    if state.islands is not None:
        return explain_islands(gm, state, state.islands, explain)
    inside = plans_by_module(gm)
    nodes = tuple(
        _explain_node(node, state, inside.get(str(node.target), {})) for node in gm.graph.nodes if not _is_silent(node)
    )
    return Explanation(state.settings.target.name, state.recipe.name, nodes, coverage_of(gm), traced=state.traced)


def _is_silent(node: Node) -> bool:
    if node.op == "output":  # worth a row only where a tensor leaves the model quantized
        return not any(is_quantizer(producer) for producer in node.all_input_nodes)
    return kind(node) in _SILENT


def _explain_node(node: Node, state: State, inside: Mapping[str, Plan]) -> NodeExplanation:
    within = _inside(node, inside)
    quantized = (*_inputs(node), *within)
    runs_quantized = bool(within or not inside) and _runs_quantized(quantized)  # not with all of its own off
    found = kind(node)
    return NodeExplanation(
        node=node.name,
        path=rule_path(node),
        kind=found if found != "other" else str(getattr(node.target, "__name__", node.target)),
        quantized=quantized,
        reason="" if runs_quantized else _why_not(node, state),
    )


def _runs_quantized(quantized: tuple[QuantizedTensor, ...]) -> bool:
    """Was anything quantized for this node, rather than where its inputs were produced?"""
    return any(tensor.role != "output" for tensor in quantized)


def _inputs(node: Node) -> list[QuantizedTensor]:
    found = []
    for edge in tensor_edges(node):
        if not is_quantizer(edge.producer):
            continue
        quantizer = module_of(edge.producer)
        assert isinstance(quantizer, TensorQuantizer)
        if not quantizer.is_enabled:
            continue
        plans = inserted_for(edge.producer)
        plan = planned_input(edge) or next(iter(plans), None)
        found.append(
            QuantizedTensor(
                role=plan.role if plan else "input",
                position=edge.position,
                quantizer=str(edge.producer.target),
                descriptor=str(quantizer.descriptor),
                range=range_text(quantizer),
                pass_name=plan.pass_name if plan else "by hand",
                why=plan.why if plan else "placed by hand",
            )
        )
    return found


def _inside(node: Node, plans: Mapping[str, Plan]) -> list[QuantizedTensor]:
    """Return what the module that ``node`` calls quantizes itself: tensors inside of it, and its weights."""
    module = module_of(node) if node.op == "call_module" else None
    if not isinstance(module, Quantized):
        return []
    role: str = "input" if isinstance(module, InputQuantized) else "inside"
    named = [(role, name, quantizer) for name, quantizer in module.activations()]
    named += [("weight", quantizer_name(name), quantizer) for name, _, quantizer in module.weights()]
    by_name = {quantizer_name(slot): plan for slot, plan in plans.items()}
    return [
        QuantizedTensor(
            role=role,
            position=None,
            quantizer=f"{node.target}.{name}",
            descriptor=str(quantizer.descriptor),
            range=range_text(quantizer),
            pass_name=by_name[name].pass_name if name in by_name else "by hand",
            why=by_name[name].why if name in by_name else "placed by hand",
        )
        for role, name, quantizer in named
        if quantizer.is_enabled
    ]


def range_text(quantizer: TensorQuantizer) -> str:
    """Return the range of a quantizer in words."""
    if quantizer.descriptor.is_dynamic:
        return "each tensor's own"
    if not quantizer.has_range:
        return "not calibrated"
    low, high = (bound.detach() for bound in quantizer.range)
    if low.numel() == 1:
        return f"[{float(low):.4g}, {float(high):.4g}]"
    return f"±{float(high.min()):.4g} to ±{float(high.max()):.4g}"


def _is_opaque(node: Node) -> bool:
    """Return whether a function of the model's author is called as one operation, such as Swin's window attention."""
    return (
        kind(node) == "other"
        and isinstance(node.target, FunctionType)
        and not node.target.__module__.startswith("torch.")
    )


def _why_not(node: Node, state: State) -> str:
    if node.op == "output":
        return "the model returns it"
    skipped = state.record.skipped(node.name)
    if skipped:
        return "; ".join(dict.fromkeys(entry.text for entry in skipped))
    target, found = state.settings.target.name, kind(node)
    reason = state.settings.target.reason(found)
    if reason is not None:
        return reason
    if found in MOVES_DATA or found == "max_pool":
        return "only moves data, and needs no quantizer of its own"
    if found in state.settings.target.fused_activations:
        return f"{target} computes it in the epilogue of the operation before it"
    output = planned_output(node)
    if output is not None:
        return f"reads floats, and its output is quantized where it is read: {output.why} ({output.pass_name})"
    if _is_opaque(node):
        return "torch.fx.wrap makes it one operation, whose products and weights the compiler does not see"
    value = node.meta.get("val")
    if isinstance(value, Tensor) and not value.is_floating_point():
        return f"its result is {str(value.dtype).removeprefix('torch.')}; floats alone are quantized"
    if found == "other":
        cure = "" if node.op == "call_method" else ": fxq.register_kind names it, for a target with a rule for it"
        return f"no pass knows this operation, and it stays in float{cure}"
    return f"{target} runs it in float"
