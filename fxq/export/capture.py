"""Lowered graph to ONNX model in memory, by torch.export and torch.onnx.

A lowered graph is a GraphModule; torch.export runs it once more. It runs here node by node, each node carrying the
scope it should be known by, so that the scope arrives at the ONNX nodes (module calls would carry it by themselves,
function calls in an inlined graph would not).
"""

import contextlib
from collections.abc import Iterator
from typing import Any, TypeGuard

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.fx import config as fx_config

from fxq.compare.outputs import evaluated
from fxq.errors import ExportError
from fxq.export.decompositions import decompose_where_needed
from fxq.export.translate import translation_table
from fxq.graph.quiet import quiet_torch
from fxq.process_lock import PROCESS_LOCK
from fxq.quant import lowered_kind

BATCH = "batch"
# The attribute that holds the graph in the exported module, hence the prefix of every parameter's name.
PREFIX = "model."


def capture(gm: fx.GraphModule, inputs: tuple[Any, ...], opset: int, dynamic_batch: bool) -> ir.Model:
    """Return ``gm`` as an ONNX model, not optimized, with torch's names.

    Raises:
        ExportError: torch cannot export the model, or cannot with a dynamic batch.
    """
    shapes = _dynamic_shapes(inputs) if dynamic_batch else None
    # torch.export takes a size of 1 for a constant, so a single example is traced as a batch of two.
    examples = with_batch(inputs, 2) if dynamic_batch and batch_size(inputs) == 1 else inputs
    try:
        with PROCESS_LOCK, quiet_torch(), _no_stack_traces(), evaluated(gm), torch.no_grad():
            # Not around torch.onnx.export: decomposing a recurrent layer would trip over the kept meta.
            with fx.traceback.preserve_node_meta():
                program = torch.export.export(_ScopedModel(gm), examples, dynamic_shapes=shapes, strict=False)
            # torch.onnx.export would trace all of it twice more.
            decompose_where_needed(program)
            onnx_program = torch.onnx.export(
                program,
                (),
                verbose=False,
                optimize=False,
                opset_version=opset,
                custom_translation_table=translation_table(opset),
            )
    except (RuntimeError, ValueError, TypeError) as error:
        raise ExportError(_advice(error, dynamic_batch)) from error
    if onnx_program is None:
        raise ExportError("torch.onnx.export returned no model")
    return onnx_program.model


def batch_size(inputs: tuple[Any, ...]) -> int:
    """Return dimension 0 of the first input tensor that has one; 0 without any."""
    return next((value.shape[0] for value in inputs if isinstance(value, Tensor) and value.dim()), 0)


def with_batch(inputs: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """Return ``inputs`` with the first sample of each batched tensor repeated ``size`` times."""
    batch = batch_size(inputs)
    return tuple(
        value[:1].repeat(size, *[1] * (value.dim() - 1)) if _is_batched(value, batch) else value for value in inputs
    )


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


class _ScopedModel(nn.Module):
    """Runs a copy of the graph, on the same parameters, with the scope of each node where torch.export looks."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__()
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        output = graph.graph_copy(gm.graph, copied)
        graph.output(output)
        graph.set_codegen(gm.graph._codegen)
        for original, node in copied.items():
            node.meta = {"nn_module_stack": {"scope": (scope_of(original), "torch.nn.Module")}}
        self.model = fx.GraphModule(gm, graph)
        self.model.training = False

    def forward(self, *inputs: Any) -> Any:
        return fx.Interpreter(self.model).run(*inputs)


@contextlib.contextmanager
def _no_stack_traces() -> Iterator[None]:
    """Spare each traced node its stack trace, a sixth of the tracing, which names lines of torch and is dropped."""
    # Not in torch 2.11, which ignores it.
    before = getattr(fx_config, "do_not_emit_stack_traces", False)
    fx_config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx_config.do_not_emit_stack_traces = before


def _dynamic_shapes(inputs: tuple[Any, ...]) -> dict[str, Any]:
    batch, dim = batch_size(inputs), Dim(BATCH)
    return {"inputs": tuple({0: dim} if _is_batched(value, batch) else None for value in inputs)}


def _is_batched(value: Any, batch: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch


def _is_stored(node: Any) -> TypeGuard[fx.Node]:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _parent(node: Any) -> str:
    return str(node.target).rpartition(".")[0] if _is_stored(node) else ""


def _advice(error: Exception, dynamic_batch: bool) -> str:
    while isinstance(error.__cause__, Exception):  # torch wraps what went wrong in how to report it
        error = error.__cause__
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if dynamic_batch:
        return (
            f"the model does not export with a dynamic batch: {reason} - if it works for one batch size only "
            "(a reshape with a literal number, a loop over the batch), pass dynamic_batch=False"
        )
    return f"torch.onnx.export failed: {reason}"
