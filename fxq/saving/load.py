"""Load: trace the model, put the saved plans on its graph, carry them out, and put the saved tensors in."""

import os
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import tomli_w
from torch import nn
from torch.fx import GraphModule

from fxq.api import convert
from fxq.batches import ExampleInputs, Inputs, as_positional
from fxq.collector import paused_collector
from fxq.compare.quality import OutputQuality, Quality
from fxq.errors import FxqError, RecipeError, SavedModelError
from fxq.float_reference import ComparedInputs, placed_like
from fxq.given_model import as_module, own_example_inputs
from fxq.graph.altered import check_copyable
from fxq.islands.layout import MODEL
from fxq.model_checks import check_model
from fxq.nn.batchnorm import set_frozen
from fxq.original import Original, checksum, form_of
from fxq.preparation import prepare_graph
from fxq.recipe import Recipe
from fxq.record import Entry, Record
from fxq.registry import registered_targets
from fxq.request import Request
from fxq.saving.edits import changes_of
from fxq.saving.graphs_again import graph_again, islands_again
from fxq.saving.input_forms import inputs_of_form
from fxq.saving.packed import CALIBRATOR, Packed
from fxq.saving.quantizer_state import set_quantizers
from fxq.saving.saved_file import read_packed
from fxq.saving.stored_tensors import put_back
from fxq.stage import Stage
from fxq.state import check_values, require_state, set_state
from fxq.surroundings import in_plain_surroundings
from fxq.targets import Target
from fxq.toml_text import parse_toml

_MOST_SHOWN = 8


@in_plain_surroundings
@paused_collector()
def load(path: str | os.PathLike[str], model: nn.Module, example_inputs: ExampleInputs = None) -> GraphModule:
    """Return the prepared, calibrated or converted model that ``fxq.save`` wrote.

    The model is traced, and the plans, ranges, weights and calibrator states of the file are put on its graph: nothing
    is calibrated, and nothing in the file is run. ``fit_ranges``, training, ``convert`` and ``export_onnx`` go on from
    there with the same numbers.

    Args:
        path: of the file.
        model: the model that was prepared: its code, not its weights, which are in the file; never modified.
        example_inputs: as in ``prepare``. None makes them up from the shapes in the file, for tracing and exporting;
            then ``convert`` has nothing to compare with the float model.

    Returns:
        A GraphModule at the stage at which it was saved, on the model's device.

    Raises:
        SavedModelError: the file is truncated, foreign, of a newer fxq, or of another model: what differs is listed.
        FxqError: as of ``prepare``; a pass of the recipe is not registered, or the model does not trace.
    """
    packed = read_packed(path)
    try:
        return _load(packed, model, example_inputs)
    except FxqError as error:
        error.add_note(f"raised while loading {os.fspath(path)}")
        raise


def _load(packed: Packed, given: Any, example_inputs: ExampleInputs) -> GraphModule:
    header, model = packed.header, as_module(given)
    check_model(model, verify=False, call="load")
    check_values(model, "load")
    _check_same_tensors(header["model"]["tensors"], model)
    check_copyable(model)
    recipe = _recipe(header)
    inputs = as_positional(model, own_example_inputs(given) if example_inputs is None else example_inputs)
    is_made_up = inputs is None and header["inputs"] is not None
    if is_made_up:
        ((inputs, _),) = placed_like(model, (Inputs(inputs_of_form(header["inputs"]), {}),))
    request = Request(recipe, header["qat"], False, recipe.leaf_modules, header["frontend"])
    if header["islands"]:
        gm = islands_again(model, header, inputs, request, are_real=not is_made_up)
    else:
        gm = graph_again(lambda one: _prepared(model, inputs, one, header["untraceable"], is_made_up), header, request)
    put_back(gm, packed.weights, header["ties"], set(header["frozen"]))
    set_quantizers(gm, header["quantizers"], packed.section(CALIBRATOR))
    for path in header["modes"]["frozen_norms"]:
        set_frozen(gm.get_submodule(path), True, gm.training)
    gm.train(header["modes"]["training"])
    for path in header["modes"]["others"]:
        gm.get_submodule(path).training = not gm.training
    for path, fields in header["islands"].items():
        island, part = gm.get_submodule(f"{MODEL}.{path}"), model.get_submodule(path)
        assert isinstance(island, GraphModule)
        _restore(island, fields, packed, (part, part), not is_made_up, f"{MODEL}.{path}.")
    _restore(gm, header, packed, (given, model), not is_made_up)
    return _converted(gm, header) if header["is_converted"] else gm


def _restore(
    gm: GraphModule,
    fields: Mapping[str, Any],
    packed: Packed,
    original: tuple[Any, nn.Module],
    are_real: bool,
    within: str = "",
) -> None:
    """Give a graph that has its tensors back the state that it was saved with.

    Args:
        gm: that of the whole, or of an island.
        fields: what the header has of it.
        packed: the file.
        original: what the user gave, and the module that it is or stands for.
        are_real: its example inputs are not made up.
        within: what stands before its paths in the file.
    """
    given, model = original
    state = require_state(gm, Stage.PREPARED, "load")
    inputs = state.settings.example_inputs
    state = replace(
        state,
        stage=Stage[fields["stage"].upper()],
        record=_record(fields["record"]),
        verify=packed.header["verify"],
        changes=changes_of(gm, fields, packed.tensors, state.changes.replaced, within),
        original=_original(given, model, fields["model"]),
        compared=_compared(inputs, fields["compared"]) if are_real and inputs is not None else None,
    )
    set_state(gm, state)


def _check_same_tensors(saved: Mapping[str, str], model: nn.Module) -> None:
    found = form_of(model)
    lines = [f"- {name}: {form}" for name, form in saved.items() if name not in found]
    lines += [f"+ {name}: {form}" for name, form in found.items() if name not in saved]
    lines += [f"! {name}: {form}, here {found[name]}" for name, form in saved.items() if found.get(name, form) != form]
    if lines:
        more = f"\nand {len(lines) - _MOST_SHOWN} more" if len(lines) > _MOST_SHOWN else ""
        raise SavedModelError(
            "the model is not the one that was saved; its tensors differ (- only in the file, + only in the model, "
            "! of another form):\n" + "\n".join(lines[:_MOST_SHOWN]) + more
        )


def _recipe(header: Mapping[str, Any]) -> Recipe:
    """Return the recipe, with the target as it was saved, whatever is registered under its name."""
    target = Target.from_dict(header["target"])
    found = registered_targets().get(target.name)
    if found is not None and found.target != target:
        warnings.warn(
            f"the target {target.name!r} of the file is not the one that is registered now; the file's is used",
            stacklevel=2,
        )
    fields = {**parse_toml(header["recipe"], "the recipe of the file", RecipeError), "target": header["target"]}
    recipe = Recipe.from_toml(tomli_w.dumps(fields))
    is_registered = found is not None and found.target == target
    return recipe.replace(target=target.name) if is_registered else recipe


def _prepared(
    model: nn.Module, inputs: tuple[Any, ...] | None, request: Request, untraceable: Any, is_made_up: bool
) -> GraphModule:
    try:
        return prepare_graph(model, inputs, request, untraceable)
    except FxqError as error:
        if is_made_up:
            error.add_note("the example inputs were made up from the shapes in the file: pass example_inputs to load")
        elif inputs is None:
            error.add_note("the file holds no shapes of example inputs: pass example_inputs to load")
        raise


def _record(fields: Mapping[str, Any]) -> Record:
    record = Record(passes=list(fields["passes"]))
    for entry in fields["entries"]:
        record.add(Entry(*entry))
    return record


def _original(given: Any, model: nn.Module, fields: Mapping[str, Any]) -> Original:
    """Return the model as the original if it has the weights that were prepared; else one that is gone."""
    is_it = bool(fields["checksum"]) and checksum(model) == fields["checksum"]
    reference = weakref.ref(given if is_it else nn.Module())
    return Original(reference, fields["checksum"], fields["prepared"], fields["tensors"])


def _compared(inputs: tuple[Any, ...], fields: Mapping[str, Any] | None) -> ComparedInputs:
    inside = (Inputs(inputs, {}),)
    return ComparedInputs(inside, "", False) if fields is None else ComparedInputs(inside, **fields)


def _converted(gm: GraphModule, header: Mapping[str, Any]) -> GraphModule:
    """Return the model converted again, with what was found out about how good it is."""
    converted = convert(gm)
    state = require_state(converted, Stage.LOWERED, "load")
    quality = header["quality"]
    if quality is not None and state.explanation is not None and state.explanation.quality is None:
        outputs = tuple(OutputQuality(**fields) for fields in quality["outputs"])
        known = Quality(**{**quality, "outputs": outputs})
        set_state(converted, replace(state, explanation=replace(state.explanation, quality=known)))
    return converted
