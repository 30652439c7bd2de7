"""prepare, convert, quantize, export_onnx: thin, they run the stages."""

import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import GraphModule

from fxq.batches import ExampleInputs, Forward, as_positional, first_inputs
from fxq.calibration import calibrate, needs_data
from fxq.collector import paused_collector
from fxq.compare.worst_layers import worst_layers
from fxq.conversion import run_conversion
from fxq.data import Data
from fxq.errors import InputError, TraceError
from fxq.explain import explain_graph
from fxq.file_writing import FileRequest, write_file
from fxq.float_reference import refer
from fxq.frontend.choice import Frontend
from fxq.given_model import as_module, own_example_inputs
from fxq.graph.altered import check_copyable
from fxq.islands.conversion import Demand, convert_islands
from fxq.islands.preparation import prepare_islands
from fxq.model_checks import (
    check_model,
    check_quantized_unaltered,
    levels_to_caller,
    warn_of_nothing,
    warn_of_training_mode,
)
from fxq.original import Original
from fxq.preparation import prepare_graph
from fxq.recipe import Recipe, recipe_at
from fxq.recipe import recipe as find_recipe
from fxq.request import Request
from fxq.saving.pack import source_of
from fxq.stage import Stage
from fxq.state import State, check_values, require_state, set_state
from fxq.surroundings import in_plain_surroundings
from fxq.untraceable import Untraceable, check_untraceable
from fxq.verdict import check_least, judge

if TYPE_CHECKING:
    from fxq.export import ExportReport


@in_plain_surroundings
@paused_collector()
def prepare(  # noqa: PLR0913 - what a model is made of, and how
    model: nn.Module,
    example_inputs: ExampleInputs = None,
    recipe: str | Recipe = "tensorrt",
    qat: bool = False,
    verify: bool = False,
    frontend: Frontend = "auto",
    untraceable: Untraceable = "error",
) -> GraphModule:
    """Return a copy of ``model`` with quantizers where the target fuses them, ready to calibrate or to train.

    Args:
        model: any module; never modified. One in training mode is prepared as its eval() self, with a warning. Also an
            ExportedProgram (its own example inputs serve where there are no others); a compiled module, or one in
            DataParallel or DistributedDataParallel, is prepared as the module inside.
        example_inputs: a tensor, a tuple of positional inputs, a dict of keyword inputs, or (args, kwargs). Needed only
            where the model's Python tests shapes, for ``verify``, and for passes that ask for shapes; remembered for
            ``export_onnx``.
        recipe: "tensorrt", "onnxruntime", "openvino", "dynamic", "weight_only", "weight_only_int4", "tensorrt-fp8",
            "tensorrt-int4", a .toml file, or a Recipe.
        qat: the result will be trained: dropout and all else that the model does in training stays and follows train()
            and eval(), or is named in a warning.
        verify: run the graph on the example inputs before and after each pass, here and in ``convert``, and name the
            first that moves the numbers further than its tolerance.
        frontend: what traces the model: "symbolic" (torch.fx follows its Python), "export" (torch.export runs it on the
            example inputs), or "auto", the first that succeeds. ``fxq.explain`` says which, and why.
        untraceable: what becomes of a module that does not trace: "error"; "float" keeps the smallest such module whole
            in float, with a warning that names it; "islands" quantizes the parts that trace of a model that does not
            trace itself, such as a detector, whose own Python then runs around them: it needs example inputs.

    Returns:
        A GraphModule with the model's call signature, on its device, in its dtype, in eval mode. An argument that is
        not among the example inputs has its default for good: a call with another value is an InputError. With islands
        its graph is one call of a copy of the model, and each island in it a prepared GraphModule.

    Raises:
        FxqError: of the kind that fits (StageError, TraceError, InputError, RecipeError, TargetError, PassError).
    """
    chosen = find_recipe(recipe)
    request = Request(chosen, qat, verify, chosen.leaf_modules, frontend)
    check_untraceable(untraceable)
    given, model = model, as_module(model)
    check_model(model, verify)
    warn_of_training_mode(model)
    inputs = as_positional(model, own_example_inputs(given) if example_inputs is None else example_inputs)
    check_copyable(model)
    try:
        gm = prepare_graph(model, inputs, request, untraceable)
    except TraceError as error:
        if untraceable != "islands":
            raise
        gm = prepare_islands(model, inputs, request, prepare_graph, error)
    if given is not model:  # what stands for the module is what lives as long as its owner wants
        set_state(gm, replace(require_state(gm, Stage.PREPARED, "prepare"), original=Original.of(given, gm)))
    warn_of_nothing(gm, chosen)
    return gm


@in_plain_surroundings
@paused_collector()
def convert(prepared: GraphModule, min_sqnr_db: float | None = None, strict: bool = False) -> GraphModule:
    """Return a copy of a calibrated or trained model with explicit quantize and dequantize nodes and integer weights.

    It is compared with the original float model on some of the calibration samples (or on the example inputs, where
    there was no calibration); ``fxq.explain(converted).quality`` says how close it is.

    Args:
        prepared: the result of ``prepare``, with a range in every quantizer that needs one; not modified. Weights that
            were not fitted are.
        min_sqnr_db: warn where an output has a lower signal to quantization noise ratio; None for what the recipe says.
        strict: raise instead of warning.

    Raises:
        AccuracyError: ``strict``, and the result is too far from the float model.
        CalibrationError: quantizers have no range; their module paths are listed.
        PassError: a quantized module has forward hooks, which would be lost; or the result computes something else
            than ``prepared``; the pass is named. Compared on the example
            inputs of ``prepare``, or else on samples of calibration: after each pass if ``prepare`` was asked to
            verify, else at the end.
        TraceError: on the samples the traced graph computes something else than the original model.
        InputError: the prepared model does not run on these inputs, or ``min_sqnr_db`` is no number.
        StageError: this is not a prepared model.
    """
    check_least(min_sqnr_db)
    state = require_state(prepared, Stage.PREPARED, "convert")
    check_values(prepared, "convert")
    if state.islands is not None:
        gm = convert_islands(prepared, state, state.islands, _convert_island, Demand(min_sqnr_db, strict))
        set_state(gm, replace(require_state(gm, Stage.LOWERED, "convert"), source=source_of(prepared)))
        return gm
    _warn_of_passes_without_data(state)
    check_quantized_unaltered(prepared)
    explanation = explain_graph(prepared, state)
    gm, record, seen = run_conversion(prepared, state)
    reference = None
    original = None if state.original is None else state.original.find()
    if state.original is not None and original is None and state.original.is_there:
        warnings.warn(
            "the original model's weights or buffers were changed since fxq.prepare; the prepared model has copies of "
            "what they were, and these are converted. Load or train before prepare, or train the prepared model",
            stacklevel=levels_to_caller(),
        )
    if state.compared is not None:
        reference = refer(prepared, state.compared, original, state.changes)
    quality = None if reference is None else reference.quality(gm, seen)
    explanation = replace(explanation, quality=quality)
    lowered = replace(state, stage=Stage.LOWERED, record=record, explanation=explanation, reference=reference)
    set_state(gm, replace(lowered, source=source_of(prepared)))
    if reference is not None and not reference.holds_for_one:
        warnings.warn(
            "for a single sample the original model computes something else than the graph traced from a batch: its "
            "Python asks for the size of the batch. The result holds for batches like the example inputs",
            stacklevel=levels_to_caller(),
        )
    if reference is not None and reference.unlike is not None and state.stage is Stage.CALIBRATED:
        warnings.warn(
            f"the calibration data is not like what the model was trained on: {reference.unlike}. The figures compare "
            "with the float model on this very data, and so do not show it. Look at the preprocessing: values from 0 "
            "to 255 or from 0 to 1, mean and standard deviation, the layout and order of channels",
            stacklevel=levels_to_caller(),
        )
    if reference is not None and quality is not None:
        least = state.recipe.min_sqnr_db if min_sqnr_db is None else min_sqnr_db
        judge(
            "the converted model", quality, explanation.coverage, least, strict,
            lambda: worst_layers(prepared, reference.inputs[:1]), levels_to_caller(),
        )  # fmt: skip
    return gm


def _convert_island(island: GraphModule) -> GraphModule:
    """Return an island converted; how good it is others judge, who know its name, and the whole is what is saved."""
    gm = convert(island, min_sqnr_db=-math.inf)
    set_state(gm, replace(require_state(gm, Stage.LOWERED, "convert"), source=None))
    return gm


def quantize(  # noqa: PLR0913 - prepare, calibrate and convert in one
    model: nn.Module,
    batches: Iterable[Any] | Data | None = None,
    recipe: str | Recipe = "tensorrt",
    example_inputs: ExampleInputs = None,
    forward: Forward | None = None,
    progress: bool = True,
    min_sqnr_db: float | None = None,
    strict: bool = False,
    frontend: Frontend = "auto",
    untraceable: Untraceable = "error",
    accuracy: str | None = None,
) -> GraphModule:
    """Return the converted model: ``prepare``, ``calibrate``, ``convert`` in one call; their arguments and errors.

    ``accuracy`` is how much calibration does beside ranges, "plain", "fast" or "best" (see ``Recipe.with_accuracy``).
    None: of a recipe by name "fast", where four samples can be held out to judge its passes by (of 32); of a Recipe or
    a file what it lists.
    Without ``example_inputs`` the first batch serves, unless ``forward`` says how to feed it. The recipes "dynamic" and
    "weight_only" need no batches; with any other, leaving them out is a CalibrationError. "weight_only" and
    "weight_only_int4" round their weights for the batches that they get all the same (the pass round_weights), where
    these are 32 samples or more.
    """
    check_least(min_sqnr_db)
    first = None
    if example_inputs is None and forward is None and batches is not None and not isinstance(batches, Data):
        first, batches = first_inputs(as_module(model), batches)
        example_inputs = first
    chosen, asked = recipe_at(recipe, accuracy, untraceable == "islands", batches is not None)
    try:
        prepared = prepare(model, example_inputs, chosen, frontend=frontend, untraceable=untraceable)
    except InputError as error:
        if first is None:
            raise
        raise InputError(f"the first batch, from which the example inputs are, does not fit: {error}") from error
    if needs_data(prepared):
        calibrate(prepared, batches, forward, progress, unjudged=asked)
    return convert(prepared, min_sqnr_db, strict)


@in_plain_surroundings
@paused_collector()
def export_onnx(  # noqa: PLR0913 - what is written, and what is good enough
    converted: GraphModule,
    path: str | os.PathLike[str],
    example_inputs: ExampleInputs = None,
    dynamic_batch: bool | None = None,
    check: bool = True,
    min_sqnr_db: float | None = None,
    strict: bool = False,
    dynamic_shapes: Mapping[str, Any] | Sequence[Any] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int | None = None,
    float_dtype: torch.dtype | None = None,
    keep_io_types: bool = False,
) -> "ExportReport":
    """Write a converted model as a checked QDQ ONNX file; under a temporary name first, so never half a file.

    Args:
        converted: the result of ``convert`` or ``quantize``.
        path: the .onnx file; its directory must exist. Of a model with islands, a folder: it gets ``ISLAND.onnx`` for
            each, and ``whole.onnx`` where torch can export the Python around them.
        example_inputs: as in ``prepare``; None for those given there.
        dynamic_batch: leave dimension 0 of every input open; None for what the target prefers, or for nothing but what
            ``dynamic_shapes`` says.
        check: check the file against ONNX and the target's rules, and its numbers in ONNX Runtime: against the
            converted model, and against the float model on the samples that ``convert`` used.
        min_sqnr_db, strict: as in ``convert``, of the file; with ``strict`` one that is worse is not written.
        dynamic_shapes: the dimensions to leave open, and no others, as torch.export takes them: ``{"x": {0: "batch", 2:
            "height"}}``, or a tuple in the order of the inputs; nested for lists and dicts of tensors. Each a name, a
            ``torch.export.Dim`` (with bounds, also ``8 * Dim("h")``), Dim.DYNAMIC, Dim.AUTO or None. Names are in the
            file; sizes of one name are equal. The file is run at other sizes of each.
        input_names, output_names: names in the file, in order, for all inputs or outputs.
        opset: of the file; None for the lowest that holds it.
        float_dtype: torch.float16 or torch.bfloat16: stored tensors, scales and all that is computed in float, for
            runtimes that are strongly typed, such as TensorRT. What needs float32 stays (sums of many terms, values
            beyond the dtype on the samples, small constants), each with its reason in ``report.in_float32``. The file
            is compared with the float32 one, bfloat16 by emulation. None: the model's.
        keep_io_types: with ``float_dtype``, inputs and outputs stay float32.

    Raises:
        AccuracyError: ``strict``, and the file is too far from the float model.
        ExportError: the file cannot be written, breaks a rule, or computes something else; or the model fixes a
            dimension that was to stay open.
        InputError: shapes or names do not fit the model or contradict each other, or ``min_sqnr_db`` is no number.
    """
    check_least(min_sqnr_db)
    request = FileRequest(
        dynamic_batch, check, min_sqnr_db, strict, dynamic_shapes, input_names, output_names, opset, float_dtype,
        keep_io_types,
    )  # fmt: skip
    return write_file(converted, path, example_inputs, request)


def _warn_of_passes_without_data(state: State) -> None:
    """Say which passes of the recipe wait for data: a recipe that needs none otherwise is easily converted without."""
    waiting = [step.name for step in state.recipe.create_passes()[Stage.CALIBRATED] if not step.streams]
    missed = [name for name in waiting if name not in state.record.passes]
    if missed:
        warnings.warn(
            f"the recipe's {', '.join(missed)} did not run: call fxq.calibrate(prepared, batches) before fxq.convert "
            "(after loading a state dict, what was calibrated before is in it)",
            stacklevel=levels_to_caller(),
        )
