"""Lowered graph to ONNX model in memory, by torch.export and torch.onnx.

A lowered graph is a GraphModule; torch.export runs it once more. It runs here node by node, each node carrying the
scope it should be known by, so that the scope arrives at the ONNX nodes (module calls would carry it by themselves,
function calls in an inlined graph would not). Quantizers are traced as what stands for them: see ``stand_ins.py``.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import onnx_ir as ir
import torch
from onnxscript.values import Opset
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from fxq.errors import ExportError, FxqError
from fxq.export.decompositions import decompose_where_needed
from fxq.export.open_shapes import OpenShapes, OpenSize, tensors_of
from fxq.export.quick_torch import quick_torch
from fxq.export.stand_ins import StandIns
from fxq.export.translate import translation_table
from fxq.graph.quiet import quiet_torch
from fxq.graph.snapshot import evaluated
from fxq.process_lock import PROCESS_LOCK
from fxq.quant import lowered_kind

# The attribute that holds the graph in the exported module, hence the prefix of every parameter's name.
PREFIX = "model."
# What was ONNX has 1e9 or the largest number of a type in place of "to the end".
_BEYOND_ANY_SIZE = 10**9


@dataclass(frozen=True)
class Captured:
    """An ONNX model, what turned out to stay open in it, and what torch's symbols for sizes (s33) are called.

    ``conditions``: what torch.export took for given about open sizes.
    """

    model: ir.Model
    shapes: OpenShapes
    symbols: Mapping[str, str]
    conditions: "Conditions"


def capture(gm: fx.GraphModule, inputs: tuple[Any, ...], opset: int, shapes: OpenShapes) -> Captured:
    """Return ``gm`` as an ONNX model, not optimized, with torch's names.

    Raises:
        ExportError: torch cannot export the model, or cannot with these open sizes.
    """
    # torch.export takes a size of 1 for a constant, so a single example is traced as a batch of two.
    ones = {name: 2 for name, size in shapes.sizes(inputs).items() if size == 1}
    examples = shapes.resized(inputs, ones)
    stand_ins = StandIns(gm, PREFIX)
    scoped = _ScopedModel(gm, shapes, stand_ins)
    try:
        with PROCESS_LOCK, quiet_torch(), quick_torch(), evaluated(gm), torch.no_grad():
            # Not around torch.onnx.export: decomposing a recurrent layer would trip over the kept meta.
            with fx.traceback.preserve_node_meta():
                program = torch.export.export(
                    scoped, examples, dynamic_shapes=_as_torch_takes(shapes, inputs), strict=False
                )
            settled, symbols = _settled(program, shapes)
            # torch.onnx.export would trace all of it twice more.
            decompose_where_needed(program)
            onnx_program = torch.onnx.export(
                program,
                (),
                verbose=False,
                optimize=False,
                opset_version=opset,
                custom_translation_table={**translation_table(opset), **stand_ins.translations(Opset("", opset))},
            )
    except FxqError:
        raise
    except Exception as error:  # torch's exporter raises of many kinds, and so may what the model keeps whole
        raise ExportError(_advice(error, shapes, scoped.conditions.fixed)) from error
    if onnx_program is None:
        raise ExportError("torch.onnx.export returned no model")
    stand_ins.store_tensors(onnx_program.model)
    return Captured(onnx_program.model, settled, symbols, scoped.conditions)


def scope_of(node: fx.Node) -> str:
    """Return the module path that a node of a lowered graph belongs to, its own name where there is none.

    Quantizers are named by their scale, stored tensors by their own path, weighted functions by their weight, and
    everything else by its module.
    """
    if node.op == "call_module":
        return str(node.target)
    found = lowered_kind(node.target)
    if found == "dequantize" and _is_stored(node.args[0]):
        return str(node.args[0].target)
    if found in ("quantize", "dequantize"):
        return _parent(node.args[1]) or node.name
    if node.op == "call_function" and len(node.args) > 1:
        weight = node.args[1]
        if isinstance(weight, fx.Node) and lowered_kind(weight.target) == "dequantize":
            weight = weight.args[0]
            if _parent(weight):
                return _parent(weight)
        elif found == "dynamic" and _parent(weight):
            return _parent(weight)
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0] if stack else "") or node.name


def _without_far_end(index: Any) -> Any:
    """Return an index whose slices to beyond any dimension have no end, which torch.export would hold a size to."""
    if isinstance(index, tuple | list):
        return type(index)(map(_without_far_end, index))
    if isinstance(index, slice) and isinstance(index.stop, int) and index.stop >= _BEYOND_ANY_SIZE:
        return slice(index.start, None, index.step)
    return index


class _ScopedModel(nn.Module):
    """Runs a copy of the graph, on the same parameters, with the scope of each node where torch.export looks.

    ``conditions``: what it takes for given about open sizes meanwhile.
    """

    def __init__(self, gm: fx.GraphModule, shapes: OpenShapes, stand_ins: StandIns) -> None:
        super().__init__()
        self.conditions = Conditions(shapes)
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        output = graph.graph_copy(gm.graph, copied)
        graph.output(output)
        graph.set_codegen(gm.graph._codegen)
        for original, node in copied.items():
            scope = {"scope": (scope_of(original), "torch.nn.Module")}
            node.meta = {"nn_module_stack": scope, "described": described(original)}
            if node.target is operator.getitem:
                node.args = (node.args[0], _without_far_end(node.args[1]))
        stand_ins.put_into(graph, copied)
        self.model = fx.GraphModule(gm, graph)
        self.model.training = False

    def forward(self, *inputs: Any) -> Any:
        return _Watching(self.model, self.conditions).run(*inputs)


class Conditions:
    """What torch.export took for given about open sizes, node by node.

    An object of its own: torch.export gives a module the dicts back that it had before.
    """

    def __init__(self, shapes: OpenShapes) -> None:
        self.fixed: dict[tuple[int, int], str] = {}  # of open dimensions that are fixed by now, the node that did it
        self._shapes = shapes
        self._symbols: dict[tuple[int, int], Any] = {}
        self._guards: list[tuple[Any, str]] = []

    def note(self, inputs: tuple[Any, ...], node: fx.Node) -> None:
        """Note ``node`` for what is taken for given since the node before it."""
        tensors = tensors_of(inputs) if self._shapes else []
        for leaf, axis, _ in self._shapes.places():
            size, place = tensors[leaf].shape[axis], (leaf, axis)
            if isinstance(size, torch.SymInt):
                self._symbols.setdefault(place, size.node.expr)
                guards = size.node.shape_env.guards
                self._guards += [(guard.expr, node.meta["described"]) for guard in guards[len(self._guards) :]]
            is_fixed = not isinstance(size, torch.SymInt) or size.node.maybe_as_int() is not None
            if is_fixed and place not in self.fixed:
                self.fixed[place] = node.meta["described"]

    def broken_by(self, shapes: OpenShapes, sizes: Mapping[str, int]) -> str:
        """Return the node whose conditions do not hold with ``sizes``, of all names in ``shapes``; "" without any."""
        values = {
            self._symbols[leaf, axis]: one.times * sizes[one.name] + one.plus
            for leaf, axis, one in shapes.places()
            if (leaf, axis) in self._symbols
        }
        return next((node for condition, node in self._guards if condition.xreplace(values) == False), "")  # noqa: E712


class _Watching(fx.Interpreter):
    """Notes what is taken for given, node by node."""

    def __init__(self, gm: fx.GraphModule, conditions: Conditions) -> None:
        super().__init__(gm)
        self.conditions = conditions
        self.inputs: tuple[Any, ...] = ()

    def run(self, *inputs: Any, **_: Any) -> Any:
        """Run on positional inputs."""
        self.inputs = inputs
        return super().run(*inputs)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        self.conditions.note(self.inputs, n)
        return result


def described(node: fx.Node) -> str:
    """Return a node in words: its name, the module it is from, and its line in the model's code."""
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip()]
    code = f", {lines[-2]} `{lines[-1]}`" if len(lines) > 1 else ""
    return f"node '{node.name}' in '{scope_of(node)}'{code}"


def _as_torch_takes(shapes: OpenShapes, inputs: tuple[Any, ...]) -> dict[str, Any] | None:
    if not shapes:
        return None
    remaining = iter(shapes.dims)
    # A batch by name: torch then refuses what it would else take for a condition. Of other sizes it refuses too much
    # (those that a stride makes 1), and what they are good for is seen when the file runs with others.
    hints = {True: Dim.AUTO, False: Dim.DYNAMIC}
    batch = Dim("batch")

    def hint(one: OpenSize) -> Any:
        return batch if shapes.is_batch_alone else hints[one.is_optional]

    def written(value: Any) -> Any:
        return {axis: hint(one) for axis, one in next(remaining).items()} if isinstance(value, Tensor) else None

    return {"inputs": pytree.tree_map(written, inputs)}


def _settled(program: ExportedProgram, shapes: OpenShapes) -> tuple[OpenShapes, dict[str, str]]:
    """Return what stays open, equal sizes under one name, and the name of each symbol.

    Raises:
        ExportError: sizes of two names turned out to be equal.
    """
    users = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in users]
    tensors = [value for value in values if isinstance(value, Tensor)]
    first: dict[str, tuple[OpenSize, str]] = {}
    dims: list[dict[int, OpenSize]] = [{} for _ in shapes.dims]
    for leaf, axis, one in sorted(shapes.places(), key=lambda place: not place[2].is_named):
        size = tensors[leaf].shape[axis]
        if not isinstance(size, torch.SymInt):
            continue  # it may turn out fixed, or torch.export would have refused
        where = f"dimension {axis} of {shapes.inputs[leaf]!r}"
        like, place = first.setdefault(str(size.node.expr), (one, where))
        if str(like) != str(one) and like.is_named and one.is_named:
            raise ExportError(
                f"{place} ({like}) and {where} ({one}) are of one size in the model, and dynamic_shapes gives them two "
                "names: give them the same"
            )
        dims[leaf][axis] = like
    return replace(shapes, dims=tuple(dims)), {symbol: str(one) for symbol, (one, _) in first.items()}


def _is_stored(node: Any) -> TypeGuard[fx.Node]:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _parent(node: Any) -> str:
    return str(node.target).rpartition(".")[0] if _is_stored(node) else ""


def _advice(error: Exception, shapes: OpenShapes, fixed: Mapping[tuple[int, int], str]) -> str:
    while isinstance(error.__cause__, Exception):  # torch wraps what went wrong in how to report it
        error = error.__cause__
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if shapes and shapes.is_batch_alone:
        return (
            f"the model does not export with a dynamic batch: {reason} - if it works for one batch size only "
            "(a reshape with a literal number, a loop over the batch), pass dynamic_batch=False"
        )
    if shapes and fixed:
        (leaf, axis), node = next(iter(fixed.items()))
        return (
            f"dimension {axis} of {shapes.inputs[leaf]!r} ({shapes.dims[leaf][axis]}) cannot stay open: what fixes it "
            f"is {node}, which torch.export writes for the size of the example inputs alone. Leave it out of "
            "dynamic_shapes, or let the model follow it (sizes from x.shape instead of numbers)"
        )
    if shapes:
        return f"the model does not export with {', '.join(shapes.names())} open: {reason}"
    return f"torch.onnx.export failed: {reason}"
