"""Pack a prepared or converted model: all that is saved of it.

The header has: ``stage`` of the prepared model, and whether it ``is_converted``; ``recipe`` (TOML) and ``target`` (all
of it, so that the file needs no other); what ``prepare`` was asked for (``qat``, ``verify``, ``frontend``,
``untraceable``, ``inputs``: their form); the ``model`` (the form of its tensors and a checksum); ``graph``, ``plans``,
``record``; ``quantizers``, ``edits`` and ``changes`` of calibration; ``ties``, ``frozen`` and ``modes`` of tensors and
modules; ``compared`` and ``quality``. With islands, ``islands`` has of each by its path what is of one graph
(``stage``, ``inputs``, ``model``, ``graph``, ``plans``, ``record``, ``edits``, ``changes``, ``compared``), and ``left``
why other parts stay in float; all else is of the whole. Of a converted model it is the prepared one, and what was found
out about the converted: converting it again gives the same.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from fxq.calib import Calibrator
from fxq.errors import FxqError, RecipeError, SavedModelError, StageError
from fxq.graph.modules import copy_calibrator
from fxq.islands.layout import MODEL
from fxq.module_tree import named_modules, named_parameters
from fxq.nn.batchnorm import FrozenBatchNorm
from fxq.recipe import Recipe
from fxq.record import Record
from fxq.saving.edits import changes_to_tensors, edits_to_dict
from fxq.saving.graph_text import graph_lines, plans_to_dict
from fxq.saving.input_forms import inputs_to_form
from fxq.saving.packed import Packed, Source
from fxq.saving.quantizer_state import quantizers_to_dict, states_of
from fxq.saving.stored_tensors import stored_tensors
from fxq.stage import Stage
from fxq.state import State, check_has_all, find_state, require_state


def pack(model: GraphModule) -> Packed:
    """Return what is saved of a prepared or converted model; its tensors are not copied.

    Raises:
        StageError: it is none.
        SavedModelError: something in it cannot be stored.
        RecipeError: the recipe has a rule that is a predicate.
    """
    state = find_state(model)
    if state is None or state.stage is not Stage.LOWERED:
        return _whole(*_pack(model, require_state(model, Stage.PREPARED, "save")))
    if state.source is None:
        raise StageError("the converted model has lost what it was made of (a pickle of it): save the prepared model")
    if isinstance(state.source, FxqError):
        raise state.source
    quality = None if state.explanation is None else state.explanation.quality
    header = {"is_converted": True, "quality": None if quality is None else asdict(quality)}
    packed = _whole(state.source.packed, state.source.calibrators)
    return Packed({**packed.header, **header}, packed.tensors)


def source_of(prepared: GraphModule) -> Source | FxqError:
    """Return what will be saved of the converted model, whatever becomes of the prepared one; or why it cannot be."""
    try:
        packed, calibrators = _pack(prepared, require_state(prepared, Stage.PREPARED, "save"))
    except FxqError as error:
        return error.with_traceback(None)
    tensors = {name: tensor.clone() for name, tensor in packed.tensors.items()}
    copies = {path: copy_calibrator(calibrator) for path, calibrator in calibrators.items()}
    return Source(Packed(packed.header, tensors), copies)


def _whole(packed: Packed, calibrators: Mapping[str, Calibrator]) -> Packed:
    return Packed(packed.header, {**packed.tensors, **states_of(calibrators)})


def _pack(gm: GraphModule, state: State) -> tuple[Packed, dict[str, Calibrator]]:
    """Return the model without what its calibrators have observed, and these."""
    check_has_all(gm, "save")
    _check_extra_state(gm)
    tensors, ties = stored_tensors(gm)
    quantizers, calibrators = quantizers_to_dict(gm)
    graph, changed = _pack_graph(gm, state, "")
    islands = {}
    for path, island in ({} if state.islands is None else state.islands.modules(gm)).items():
        islands[path], own = _pack_graph(island, require_state(island, Stage.PREPARED, "save"), f"{MODEL}.{path}.")
        changed |= own
    header = {
        **graph,
        "is_converted": False,
        "recipe": _recipe_text(state.recipe),
        "target": state.settings.target.to_dict(),
        "qat": state.settings.qat,
        "verify": state.verify,
        "frontend": state.frontend,
        "untraceable": state.untraceable,
        "islands": islands,
        "left": {} if state.islands is None else dict(state.islands.left),
        "quantizers": quantizers,
        "ties": ties,
        "frozen": [path for path, one in named_parameters(gm, remove_duplicate=False) if not one.requires_grad],
        "modes": modes_of(gm),
        "quality": None,
    }
    return Packed(header, {**tensors, **changed}), calibrators


def _pack_graph(gm: GraphModule, state: State, within: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what is of one graph, and the tensors that its modules do not hold; ``within``: before their paths."""
    changes, changed = changes_to_tensors(gm, state.changes, within)
    compared, original = state.compared, state.original
    fields = {
        "stage": str(state.stage),
        "inputs": _inputs(state),
        "model": {
            "tensors": {} if original is None else dict(original.form),
            "checksum": "" if original is None else original.checksum,
            "prepared": "" if original is None else original.prepared,
        },
        "graph": graph_lines(gm),
        "plans": plans_to_dict(gm),
        "record": _record_to_dict(state.record),
        "edits": edits_to_dict(gm, state.changes, state.record.passes),
        "changes": changes,
        "compared": None if compared is None else {"checksum": compared.checksum, "is_original": compared.is_original},
    }
    return fields, changed


def modes_of(gm: nn.Module) -> dict[str, Any]:
    """Return whether the whole is in training mode, the paths of the modules in the other mode, and of frozen norms."""
    modules = dict(named_modules(gm))
    others = [path for path, module in modules.items() if module.training is not gm.training]
    norms = [path for path, module in modules.items() if isinstance(module, FrozenBatchNorm)]
    return {"training": gm.training, "others": others, "frozen_norms": norms}


def _recipe_text(recipe: Recipe) -> str:
    try:
        return recipe.to_toml()
    except RecipeError as error:
        raise RecipeError(f"cannot save the model, whose recipe is part of the file: {error}") from error


def _inputs(state: State) -> Any:
    """Return the form of the example inputs; None where there are none, or where it cannot be stored."""
    try:
        return None if state.settings.example_inputs is None else inputs_to_form(state.settings.example_inputs)
    except SavedModelError:
        return None  # fxq.load asks for them where it needs them


def _record_to_dict(record: Record) -> dict[str, Any]:
    entries = [[one.pass_name, one.action, one.node, one.path, one.text] for one in record.entries]
    return {"passes": list(record.passes), "entries": entries}


def _check_extra_state(gm: GraphModule) -> None:
    for path, module in named_modules(gm):
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise SavedModelError(
                f"cannot save {path!r} ({type(module).__name__}): its get_extra_state() returns what may be no tensor. "
                "Keep it in buffers"
            )
