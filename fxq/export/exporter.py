"""Lowered graph -> QDQ ONNX file: capture, clean, name, write, check, and only then put in place."""

import functools
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn
from torch.onnx._constants import ONNX_MAX_OPSET
from torch.utils import _pytree as pytree

from fxq.compare.parity import OutputParity
from fxq.errors import ExportError, InputError, StageError
from fxq.export.capture import Captured, capture
from fxq.export.clean import clean
from fxq.export.fusions import judged
from fxq.export.integer_rules import check_integer
from fxq.export.names import apply_names, check_names, input_names_of
from fxq.export.open_shapes import BATCH, OpenShapes
from fxq.export.options import ExportOptions, ExportReport, OtherSizes
from fxq.export.other_sizes import adaptive_pools, check_like_original, run_others, without_decisive, without_fixed
from fxq.export.parity import Reference, check_parity, dtype_hint
from fxq.export.qdq_rules import check_qdq, count_ops
from fxq.export.sixteen_bits import change_float_side, check_float_dtype
from fxq.export.size_bounds import sizes_as_metadata
from fxq.export.stored_weights import make_weight_only_fast
from fxq.export.translate import GELU_OPSET, has_gelu, needed_by_dtype, required_opset
from fxq.export.written_file import WrittenFile
from fxq.float_reference import ORIGINAL
from fxq.graph.arguments import size_conditions
from fxq.graph.kinds import produces_values
from fxq.graph.modules import graphs_in
from fxq.literal import has_utf8_form
from fxq.output_file import OutputFile
from fxq.quant import LOWERED_OPS, lowered_kind

DEFAULT_OPTIONS = ExportOptions()


def export_onnx(
    converted: fx.GraphModule,
    path: str | os.PathLike[str],
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    options: ExportOptions = DEFAULT_OPTIONS,
) -> ExportReport:
    """Write a converted model as QDQ ONNX and check the file.

    The file appears under its name complete and checked, or not at all; an older one stays until then, and lends the
    new one its permissions. A link is written through. The model is not modified. Prints nothing.

    Args:
        converted: a LOWERED graph, what ``fxq.convert`` returns.
        path: the file; weights beyond ``options.external_data_threshold`` go to ``<path>.data`` beside it.
        example_inputs: a tensor or a tuple of positional inputs.

    Raises:
        ExportError: the file cannot be written, breaks a rule, or does not compute what the model computes.
        InputError: no example inputs, or the model does not run on them.
        StageError: ``converted`` is no graph.
    """
    output = OutputFile(path)
    inputs = _as_tuple(example_inputs)
    _check_is_graph(converted)
    is_changed = check_float_dtype(converted, options.float_dtype)
    _check_outputs(converted)
    _check_modules(converted)
    reference = Reference.run(converted, inputs)
    _check_names(name for name, _ in reference.outputs)
    shapes = options.open_shapes(_parameters(converted), inputs)
    if not shapes.is_batch_alone:
        shapes = without_decisive(options.decisions, shapes, inputs)
    captured = _build(reference, options, shapes)
    settled = without_fixed(converted, inputs, captured.shapes)
    if settled != captured.shapes:
        captured = _build(reference, options, settled)
    model = captured.model
    with output.staging() as folder:
        # Under the name that the file will have: it stores the name of its weights.
        staged = folder / output.real.name
        _save(model, staged, options.external_data_threshold)
        found = _finish(staged, reference, options, captured, is_changed)
        files = output.place(staged)
    quantize_nodes, dequantize_nodes, dynamic_nodes = count_ops(model)
    return ExportReport(
        path=output.path,
        opset=model.opset_imports[""],
        size_bytes=sum(file.stat().st_size for file in files),
        quantize_nodes=quantize_nodes,
        dequantize_nodes=dequantize_nodes,
        dynamic_nodes=dynamic_nodes,
        dynamic_batch=captured.shapes.is_batch_open(inputs),
        conditions=() if shapes.is_batch_alone else size_conditions(converted.graph),
        shapes={str(value.name): _shape(value) for value in model.graph.inputs},
        external_data=files[1] if len(files) > 1 else None,
        **found,
    )


def _as_tuple(example_inputs: Tensor | tuple[Any, ...] | None) -> tuple[Any, ...]:
    if example_inputs is None:
        raise InputError("export_onnx needs example_inputs: a tensor or a tuple of positional inputs")
    return tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)


def _check_is_graph(converted: fx.GraphModule) -> None:
    if not isinstance(converted, fx.GraphModule):
        raise StageError(f"export_onnx needs what fxq.convert returns, not a {type(converted).__name__}")


def _check_outputs(gm: fx.GraphModule) -> None:
    returned = next(node for node in gm.graph.nodes if node.op == "output").args[0]
    for value in pytree.tree_leaves(returned):
        if value is not None and not (isinstance(value, fx.Node) and produces_values(value)):
            raise ExportError(f"the model returns {str(value)!r}, and an ONNX output is a tensor: return tensors only")


def _check_modules(gm: fx.GraphModule) -> None:
    for path, module in gm.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ExportError(
                f"module {path!r} is compiled TorchScript, which torch.onnx does not take: put the Python module that "
                "it was made from in its place, and prepare the model again"
            )
        if isinstance(module, nn.LSTM) and module.proj_size:
            raise ExportError(
                f"the LSTM {path!r} has proj_size={module.proj_size}, and ONNX's LSTM has no projection of the hidden "
                "state: no file can hold it. Train it with proj_size=0"
            )


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if not has_utf8_form(name):
            raise ExportError(f"the model returns {name!r}, and a file holds names in UTF-8: return it by another key")


def _parameters(gm: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in gm.graph.nodes if node.op == "placeholder"]


def _shape(value: ir.Value) -> tuple[int | str, ...]:
    return tuple(size if isinstance(size, int) else str(size.value) for size in value.shape or ())


def _build(reference: Reference, options: ExportOptions, shapes: OpenShapes) -> Captured:
    """Return the finished model in memory; its quantizers are those of the graph, one for one."""
    gm, inputs = reference.gm, reference.inputs
    opset = _opset(gm, options)
    names = check_names(
        input_names_of(gm, inputs), [name for name, _ in reference.outputs], options.input_names, options.output_names
    )
    try:
        captured = capture(gm, inputs, opset, shapes)
    except ExportError:
        if not shapes.is_batch_alone:
            run_others(gm, inputs, shapes)  # it says more, where the graph itself fixes a size
        raise
    model = captured.model
    if model.opset_imports[""] != opset:
        raise ExportError(f"torch.onnx does not write this model in opset {opset}: it wrote {model.opset_imports['']}")
    clean(model)
    _check_count(gm, model)
    if options.rules.fast_weight_only:
        make_weight_only_fast(model)
    apply_names(model, *names, captured.symbols)
    model.graph.name = type(gm).__name__
    model.producer_name, model.producer_version = "fxq", version("fxq")
    model.metadata_props.update({**options.metadata, **sizes_as_metadata(captured.shapes, inputs)})
    return captured


def _opset(gm: fx.GraphModule, options: ExportOptions) -> int:
    """Return the opset to write; where none is asked for the lowest that holds the graph as the target wants it."""
    of_dtype = needed_by_dtype(options.float_dtype)
    least, needed_by = max(
        required_opset(gm), (options.rules.minimum_opset, "the target's files"), of_dtype, key=lambda need: need[0]
    )
    if options.opset is None:
        return max(least, GELU_OPSET) if options.rules.whole_gelu and has_gelu(gm) else least
    if not isinstance(options.opset, int) or isinstance(options.opset, bool):
        raise InputError(f"opset must be a number such as {least}, got {options.opset!r}")
    if options.opset < least:
        raise ExportError(f"opset={options.opset} is too low: {needed_by} needs {least}. Take opset={least} or more")
    if options.opset > ONNX_MAX_OPSET:
        raise ExportError(f"opset={options.opset} is too high: torch.onnx writes up to {ONNX_MAX_OPSET}")
    return options.opset


def _check_count(gm: fx.GraphModule, model: ir.Model) -> None:
    if len(list(graphs_in(gm))) > 1:
        return  # the Python around islands may call one several times, or not at all
    rows = [LOWERED_OPS[node.target] for node in gm.graph.nodes if node.users and node.target in LOWERED_OPS]
    names = {name for row in LOWERED_OPS.values() for name in row.writes}
    expected = Counter(name for row in rows for name in row.writes)
    found = Counter(node.op_type for node in model.graph if node.op_type in names)
    if expected != found:
        counts = ", ".join(f"{found[name]} {name} for {expected[name]}" for name in sorted(expected | found))
        raise ExportError(f"the ONNX model has {counts} of the graph: an export step folded or copied quantizers")


def _save(model: ir.Model, path: Path, external_data_threshold: int) -> None:
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if size > external_data_threshold else None)


def _finish(
    path: Path, reference: Reference, options: ExportOptions, captured: Captured, is_changed: bool
) -> dict[str, Any]:
    """Check the file, change its float side where that is asked for, and judge it; return fields of the report."""
    file, found = WrittenFile(path, is_changed), dict[str, Any]()
    if options.check:
        found.update(_check(file, reference, options, captured))
    if is_changed:
        del file  # and its session: the file is written anew
        save = functools.partial(_save, external_data_threshold=options.external_data_threshold)
        found.update(change_float_side(captured.model, save, path, reference, options, captured.shapes))
        file = WrittenFile(path)
    if options.check:
        found.update(judged(file, reference, options, captured.shapes, is_changed))
    return found


def _check(file: WrittenFile, reference: Reference, options: ExportOptions, captured: Captured) -> dict[str, Any]:
    """Check the file against the rules, then its numbers; return these by the field of the report."""
    try:
        onnx.checker.check_model(str(file.path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported file is not valid ONNX: {error}{dtype_hint(reference.gm)}") from error
    if _is_integer(reference.gm):
        check_integer(file.model)
    else:
        check_qdq(file.model, options.rules)
    # As written first: what fails there is the file's own fault, and no fusion's.
    found: dict[str, Any] = {"parity": check_parity(file, reference)}
    if file.is_optimized_right:
        found["optimized_parity"] = check_parity(file, reference, optimize=True)
    shapes = captured.shapes
    is_batch_open, reference_of = shapes.is_batch_open(reference.inputs), options.float_reference
    if is_batch_open and reference_of and not reference_of.holds_for_one:
        raise ExportError(
            "for a single sample the model computes something else than its traced graph: its Python asks for the size "
            "of the batch. Pass dynamic_batch=False, with example_inputs of the batch that it will see"
        )
    if shapes:
        found["other_sizes"] = _check_other_sizes(file, reference, captured, options)
    return found


def _is_integer(gm: fx.GraphModule) -> bool:
    return any(lowered_kind(node.target) == "integer" for node in gm.graph.nodes)


def _check_other_sizes(
    file: WrittenFile, reference: Reference, captured: Captured, options: ExportOptions
) -> tuple[OtherSizes, ...]:
    """Run other sizes: a file may hold those it was traced with, which only others show."""
    shapes = captured.shapes
    now = shapes.sizes(reference.inputs)
    try:
        runs = run_others(reference.gm, reference.inputs, shapes)
        if options.float_reference is not None and options.float_reference.against == ORIGINAL:
            check_like_original(options.original, reference, runs)
        pools = adaptive_pools(reference.gm)
        broken = [captured.conditions.broken_by(shapes, {**now, **sizes}) or pools for sizes, _ in runs]
        return tuple(
            OtherSizes(sizes, _parity_at(file, sizes, run, node))
            for (sizes, run), node in zip(runs, broken, strict=True)
        )
    except ExportError as error:
        if not shapes.is_batch_alone:
            raise
        size = now[BATCH]
        raise ExportError(
            f"the model works only for the batch size of the example inputs, {size}: {error}; pass dynamic_batch=False"
        ) from error


def _parity_at(file: WrittenFile, sizes: Mapping[str, int], run: Reference, node: str) -> tuple[OutputParity, ...]:
    """Compare at other sizes; ``node``: what torch.export wrote for others alone, "" for nothing known."""
    try:
        return check_parity(file, run, optimize=file.is_optimized_right)
    except ExportError as error:
        where = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ExportError(
            f"with {where} the file does not compute what the model does{f', because of {node}' if node else ''}: an "
            f"operation was written for the size of the example inputs. Leave it out of dynamic_shapes ({error})"
        ) from error
