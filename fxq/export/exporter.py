"""Lowered graph -> QDQ ONNX file: capture, clean, name, write, check, and only then put in place."""

import os
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxq.compare.parity import OutputParity
from fxq.compare.quality import Quality
from fxq.errors import ExportError, InputError, StageError
from fxq.export.capture import batch_size, capture, with_batch
from fxq.export.clean import clean
from fxq.export.file_quality import measure_file
from fxq.export.names import apply_names, input_names_of
from fxq.export.options import ExportOptions, ExportReport
from fxq.export.parity import Reference, check_parity, dtype_hint, is_optimized_right
from fxq.export.qdq_rules import check_qdq, count_ops
from fxq.export.stored_weights import make_weight_only_fast
from fxq.export.translate import required_opset
from fxq.graph.kinds import produces_values
from fxq.literal import has_utf8_form
from fxq.output_file import OutputFile
from fxq.quant import LOWERED_OPS

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
    _check_outputs(converted)
    reference = Reference.run(converted, inputs)
    _check_names(name for name, _ in reference.outputs)
    model = _build(reference, options)
    with output.staging() as folder:
        # Under the name that the file will have: it stores the name of its weights.
        staged = folder / output.real.name
        _save(model, staged, options.external_data_threshold)
        parity = _check(staged, reference, options) if options.check else {}
        quality = _quality(staged, model, reference, options) if options.check else None
        files = output.place(staged)
    quantize_nodes, dequantize_nodes, dynamic_nodes = count_ops(model)
    return ExportReport(
        path=output.path,
        opset=model.opset_imports[""],
        size_bytes=sum(file.stat().st_size for file in files),
        quantize_nodes=quantize_nodes,
        dequantize_nodes=dequantize_nodes,
        dynamic_nodes=dynamic_nodes,
        dynamic_batch=options.batch_is_dynamic,
        external_data=files[1] if len(files) > 1 else None,
        quality=quality,
        **parity,
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


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if not has_utf8_form(name):
            raise ExportError(f"the model returns {name!r}, and a file holds names in UTF-8: return it by another key")


def _build(reference: Reference, options: ExportOptions) -> ir.Model:
    """Return the finished model in memory; its quantizers are those of the graph, one for one."""
    gm, inputs = reference.gm, reference.inputs
    opset = max(required_opset(gm), options.rules.minimum_opset)
    model = capture(gm, inputs, opset, options.batch_is_dynamic)
    clean(model)
    _check_count(gm, model)
    if options.rules.fast_weight_only:
        make_weight_only_fast(model)
    apply_names(model, input_names_of(gm, inputs), [name for name, _ in reference.outputs])
    model.graph.name = type(gm).__name__
    model.producer_name, model.producer_version = "fxq", version("fxq")
    model.metadata_props.update(options.metadata)
    return model


def _check_count(gm: fx.GraphModule, model: ir.Model) -> None:
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


def _check(path: Path, reference: Reference, options: ExportOptions) -> dict[str, Any]:
    """Check the file against the rules, then its numbers; return these by the field of the report."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported file is not valid ONNX: {error}{dtype_hint(reference.gm)}") from error
    model = ir.load(path)
    check_qdq(model, options.rules)
    # As written first: what fails there is the file's own fault, and no fusion's.
    found = {"parity": check_parity(model, path, reference)}
    if is_optimized_right(model):
        found["optimized_parity"] = check_parity(model, path, reference, optimize=True)
    if options.batch_is_dynamic and options.float_reference and not options.float_reference.holds_for_one:
        raise ExportError(
            "for a single sample the model computes something else than its traced graph: its Python asks for the size "
            "of the batch. Pass dynamic_batch=False, with example_inputs of the batch that it will see"
        )
    if options.batch_is_dynamic and batch_size(reference.inputs):
        found["other_batch_parity"] = _check_other_batch(model, path, reference)
    return found


def _quality(path: Path, model: ir.Model, reference: Reference, options: ExportOptions) -> Quality | None:
    if options.float_reference is None:
        return None
    batch = 0 if options.batch_is_dynamic else batch_size(reference.inputs)
    found = measure_file(path, model, reference.gm, reference.inputs, options.float_reference, batch)
    if found is not None and options.judge is not None:
        options.judge(found)
    return found


def _check_other_batch(model: ir.Model, path: Path, reference: Reference) -> tuple[OutputParity, ...]:
    """Run another number of samples: a file may hold the size it was traced with, which only another one shows."""
    size = batch_size(reference.inputs)
    try:
        other = Reference.run(reference.gm, with_batch(reference.inputs, 2 if size == 1 else 1))
        return check_parity(model, path, other, optimize=is_optimized_right(model))
    except (ExportError, InputError) as error:
        raise ExportError(
            f"the model works only for the batch size of the example inputs, {size}: {error}; pass dynamic_batch=False"
        ) from error
