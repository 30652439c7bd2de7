"""prepare, convert, quantize, export_onnx: thin, they run the stages."""

import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.fx import GraphModule

from fxq.batches import ExampleInputs, Forward, Inputs, as_positional, first_inputs
from fxq.calibration import calibrate, needs_data
from fxq.collector import paused_collector
from fxq.compare.quality import GOOD_DB, Quality
from fxq.compare.worst_layers import worst_layers
from fxq.conversion import run_conversion
from fxq.coverage import Coverage
from fxq.data import Data
from fxq.errors import AccuracyError, InputError, PassError, TraceError
from fxq.explain import explain_graph
from fxq.float_reference import ComparedInputs, refer
from fxq.frontend.choice import Frontend, Traced, trace_model
from fxq.given_model import as_module, own_example_inputs
from fxq.graph.altered import check_copyable
from fxq.graph.check import check_graph
from fxq.graph.dead_nodes import erase_dead_nodes
from fxq.graph.settings import Settings
from fxq.islands.conversion import Demand, convert_islands
from fxq.islands.export import export_islands
from fxq.islands.preparation import prepare_islands
from fxq.model_checks import (
    check_model,
    check_quantized_unaltered,
    copy_model,
    levels_to_caller,
    own_layers,
    warn_of_lost_hooks,
    warn_of_nothing,
    warn_of_own_train,
)
from fxq.nn.computed import keep_computed
from fxq.number_check import NumberCheck
from fxq.original import Original
from fxq.pipeline import run_passes
from fxq.recipe import Recipe
from fxq.recipe import recipe as find_recipe
from fxq.record import Record
from fxq.request import Request
from fxq.rules import check_rules, names_of_functions
from fxq.stage import Stage
from fxq.state import State, check_values, require_state, set_state
from fxq.surroundings import in_plain_surroundings
from fxq.untraceable import Untraceable, check_untraceable, note_kept, trace_around
from fxq.verdict import judge

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
        recipe: "tensorrt", "onnxruntime", "openvino", "dynamic", "weight_only", a .toml file, or a Recipe.
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
    inputs = as_positional(model, own_example_inputs(given) if example_inputs is None else example_inputs)
    check_copyable(model)
    try:
        gm = _prepare_graph(model, inputs, request, untraceable)
    except TraceError as error:
        if untraceable != "islands":
            raise
        gm = prepare_islands(model, inputs, request, _prepare_graph, error)
    if given is not model:  # what stands for the module is what lives as long as its owner wants
        set_state(gm, replace(require_state(gm, Stage.PREPARED, "prepare"), original=Original.of(given, gm)))
    warn_of_nothing(gm, chosen)
    return gm


def _prepare_graph(
    model: nn.Module, inputs: tuple[Any, ...] | None, request: Request, untraceable: Untraceable = "error"
) -> GraphModule:
    """Return ``model``, or a part of one, prepared as one graph; ``inputs`` are positional."""
    chosen, qat, verify = request.recipe, request.qat, request.verify
    passes = chosen.create_passes()
    copied = copy_model(model).eval()
    for module in copied.modules():
        keep_computed(module)
    leaves = (*request.leaf_modules, *own_layers(copied))

    def trace(whole: Sequence[str]) -> Traced:
        return trace_model(copied, inputs, whole, request.frontend, 1 + levels_to_caller() if qat else None)

    traced, kept = trace_around(copied, trace, leaves) if untraceable == "float" else (trace(leaves), {})
    gm, record = traced.gm, Record()
    erase_dead_nodes(gm, record)
    note_kept(gm, record, kept, 1 + levels_to_caller())
    target, calibrator = chosen.resolved_target, chosen.calibrator
    settings = Settings(target, chosen.default, chosen.rules, calibrator, qat, inputs, request.within)
    if request.functions is None:
        check_rules(chosen.rules, model, names_of_functions(gm))
    else:
        request.functions.update(names_of_functions(gm, request.path))
    state = State(Stage.TRACED, chosen, settings, record, verify=verify, traced=traced.how, decisions=traced.decisions)
    numbers = _number_check(inputs) if verify else None
    check_graph(gm, Stage.TRACED)
    for stage in (Stage.TRACED, Stage.NORMALIZED, Stage.PLANNED, Stage.PREPARED):
        run_passes(gm, passes[stage], settings, state.record, numbers)
    if qat:
        warn_of_lost_hooks(copied, gm)
        warn_of_own_train(copied)
    original = Original.of(model, gm)
    compared = None
    if traced.has_numbers:
        compared = ComparedInputs((Inputs(inputs or (), {}),), original.prepared, is_original=True)
    set_state(gm, replace(state, stage=Stage.PREPARED, original=original, compared=compared))
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
            inputs of ``prepare``, if it got any: after each pass if it was asked to verify, else at the end.
        TraceError: on the samples the traced graph computes something else than the original model.
        InputError: the prepared model does not run on these inputs.
        StageError: this is not a prepared model.
    """
    state = require_state(prepared, Stage.PREPARED, "convert")
    if state.islands is not None:
        return convert_islands(prepared, state, state.islands, _convert_island, Demand(min_sqnr_db, strict))
    check_values(prepared, "convert")
    _warn_of_passes_without_data(state)
    check_quantized_unaltered(prepared)
    explanation = explain_graph(prepared, state)
    gm, record = run_conversion(prepared, state)
    reference = None
    if state.compared is not None:
        reference = refer(prepared, state.compared, state.original, state.changes.before)
    quality = None if reference is None else reference.quality(gm)
    explanation = replace(explanation, quality=quality)
    set_state(gm, replace(state, stage=Stage.LOWERED, record=record, explanation=explanation, reference=reference))
    if reference is not None and not reference.holds_for_one:
        warnings.warn(
            "for a single sample the original model computes something else than the graph traced from a batch: its "
            "Python asks for the size of the batch. The result holds for batches like the example inputs",
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
    """Return an island converted; how good it is others judge, who know its name."""
    return convert(island, min_sqnr_db=-math.inf)


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
) -> GraphModule:
    """Return the converted model: ``prepare``, ``calibrate``, ``convert`` in one call; their arguments and errors.

    Without ``example_inputs`` the first batch serves, unless ``forward`` says how to feed it. The recipes "dynamic" and
    "weight_only" need no batches; with any other, leaving them out is a CalibrationError.
    """
    if example_inputs is None and forward is None and batches is not None and not isinstance(batches, Data):
        example_inputs, batches = first_inputs(as_module(model), batches)
    prepared = prepare(model, example_inputs, recipe, frontend=frontend, untraceable=untraceable)
    if needs_data(prepared):
        calibrate(prepared, batches, forward, progress)
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

    Raises:
        AccuracyError: ``strict``, and the file is too far from the float model.
        ExportError: the file cannot be written, breaks a rule, or computes something else; or the model fixes a
            dimension that was to stay open.
        InputError: shapes or names do not fit the model or contradict each other.
    """
    state = require_state(converted, Stage.LOWERED, "export_onnx")
    if state.islands is not None:
        if dynamic_shapes is not None or input_names is not None or output_names is not None:
            raise InputError(
                "dynamic_shapes, input_names and output_names are of one file, and islands become several: "
                "export an island by itself, fxq.export_onnx(converted.get_submodule(...), ...)"
            )
        return export_islands(
            converted, state, state.islands, path,
            lambda island, file: export_onnx(
                island, file, None, dynamic_batch, check, min_sqnr_db, strict, opset=opset
            ),
            lambda file: _export_whole(converted, file, example_inputs, dynamic_batch, opset, check),
        )  # fmt: skip
    inputs = as_positional(converted, example_inputs) or state.settings.example_inputs
    if inputs is None:
        raise InputError("export_onnx runs the model once: give it example_inputs, or give them to prepare()")
    # Importing the ONNX libraries takes as long as importing torch; only exporting needs them.
    from fxq.export import ExportOptions  # noqa: PLC0415
    from fxq.export import export_onnx as write_onnx  # noqa: PLC0415

    metadata = {"fxq.version": version("fxq"), "fxq.recipe": state.recipe.to_text()}
    coverage = Coverage() if state.explanation is None else state.explanation.coverage
    least = state.recipe.min_sqnr_db if min_sqnr_db is None else min_sqnr_db
    level = levels_to_caller()

    def judge_file(quality: Quality) -> None:
        # What convert has said already is not said again.
        known = None if state.explanation is None else state.explanation.quality
        is_said = min_sqnr_db is None and known is not None and known.sqnr_db is not None and known.sqnr_db < least
        if known is not None and _is_worse(quality, known):
            message = (
                f"the file in ONNX Runtime is worse than the converted model: {quality.worst}, and the model had "
                f"{known.worst}. Its fusions round more than the model does, or compute something else"
            )
            if strict:
                raise AccuracyError(message)
            warnings.warn(message, stacklevel=level)
        if strict or not is_said:
            judge("the file in ONNX Runtime", quality, coverage, least, strict, list, level)

    options = ExportOptions(
        dynamic_batch, dynamic_shapes, input_names, output_names, opset, check, state.settings.target.file, metadata,
        float_reference=state.reference, original=state.original, decisions=state.decisions, judge=judge_file,
    )  # fmt: skip
    return replace(write_onnx(converted, path, inputs, options), coverage=coverage)


def _export_whole(
    converted: GraphModule,
    path: os.PathLike[str],
    example_inputs: ExampleInputs,
    dynamic_batch: bool | None,
    opset: int | None,
    check: bool,
) -> "ExportReport":
    """Write a model with islands as one file; how good it is was said of the converted model."""
    state = require_state(converted, Stage.LOWERED, "export_onnx")
    from fxq.export import ExportOptions  # noqa: PLC0415
    from fxq.export import export_onnx as write_onnx  # noqa: PLC0415

    metadata = {"fxq.version": version("fxq"), "fxq.recipe": state.recipe.to_text()}
    options = ExportOptions(
        dynamic_batch, opset=opset, check=check, rules=state.settings.target.file, metadata=metadata
    )
    return write_onnx(
        converted, path, as_positional(converted, example_inputs) or state.settings.example_inputs, options
    )


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


def _is_worse(file: Quality, converted: Quality) -> bool:
    """Return whether the file is far less like the float model than the converted model is, and not good anyway."""
    pairs = zip(file.outputs, converted.outputs, strict=True)
    return any(
        after.judged_db is not None
        and before.judged_db is not None
        and after.judged_db < min(GOOD_DB, before.judged_db - 6)
        for after, before in pairs
    )


def _number_check(inputs: tuple[Any, ...] | None) -> NumberCheck:
    if inputs is None:
        raise PassError("verify=True runs the model before and after each pass: give prepare() example_inputs")
    return NumberCheck(inputs)
