"""Prepare one graph: that of a whole model, or of an island in one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.fx import GraphModule

from fxq.batches import Inputs
from fxq.errors import PassError
from fxq.float_reference import ComparedInputs
from fxq.frontend.choice import Traced, trace_model
from fxq.graph.batch_statistics import drop_unread_statistics
from fxq.graph.check import check_graph
from fxq.graph.dead_nodes import erase_dead_nodes
from fxq.graph.foreign_state import warn_of_foreign_states
from fxq.graph.range_watch import watch_ranges
from fxq.graph.settings import Settings
from fxq.graph.untraceable_modules import untraceable_modules
from fxq.model_checks import (
    copy_model,
    levels_to_caller,
    own_layers,
    warn_of_batch_statistics,
    warn_of_chance,
    warn_of_lost_hooks,
    warn_of_memory,
    warn_of_own_train,
)
from fxq.module_tree import all_modules
from fxq.nn.computed import keep_computed
from fxq.number_check import NumberCheck
from fxq.original import Original
from fxq.pipeline import check_stage_without_passes, run_passes
from fxq.record import Record
from fxq.request import Request
from fxq.rules import check_rules, names_of_operations
from fxq.stage import Stage
from fxq.state import State, set_state
from fxq.untraceable import Untraceable, note_kept, trace_around


def prepare_graph(
    model: nn.Module, inputs: tuple[Any, ...] | None, request: Request, untraceable: Untraceable = "error"
) -> GraphModule:
    """Return ``model``, or a part of one, prepared as one graph.

    Args:
        model: not modified.
        inputs: positional example inputs; None where there are none.
        request: what to make of it.
        untraceable: "float" keeps the smallest modules that do not trace whole.

    Raises:
        FxqError: as of ``fxq.prepare``.
    """
    chosen, qat, verify = request.recipe, request.qat, request.verify
    passes = chosen.create_passes()
    copied = copy_model(model).eval()
    for module in all_modules(copied):
        keep_computed(module)
    leaves = (*request.leaf_modules, *own_layers(copied))

    def trace(whole: Sequence[str]) -> Traced:
        return trace_model(copied, inputs, whole, request.frontend, 1 + levels_to_caller() if qat else None)

    def find(whole: Sequence[str]) -> Mapping[str, str]:
        return {} if request.frontend == "export" else untraceable_modules(copied, inputs, whole, qat)

    traced, kept = trace_around(copied, trace, find, leaves) if untraceable == "float" else (trace(leaves), {})
    gm, record = traced.gm, Record()
    warn_of_chance(traced.checked.chance)
    warn_of_memory(traced.checked.kept)
    warn_of_batch_statistics(drop_unread_statistics(gm.graph))
    erase_dead_nodes(gm, record)
    note_kept(gm, record, kept, 1 + levels_to_caller())
    target, calibrator = chosen.resolved_target, chosen.calibrator
    settings = Settings(target, chosen.default, chosen.rules, calibrator, qat, inputs, request.within)
    state = State(
        Stage.TRACED, chosen, settings, record, verify=verify, traced=traced.how, decisions=traced.decisions,
        frontend=request.frontend, untraceable=untraceable,
    )  # fmt: skip
    numbers = _number_check(inputs) if verify else None
    check_graph(gm, Stage.TRACED)
    names = names_of_operations(gm, request.path)
    for stage in (Stage.TRACED, Stage.NORMALIZED, Stage.PLANNED, Stage.PREPARED):
        if stage is Stage.PLANNED and request.note_plans is not None:
            request.note_plans(gm)
            continue
        if stage is Stage.PLANNED:  # what was written out or joined has names of its own, as fxq.explain shows them
            names |= names_of_operations(gm, request.path)
            _check_rules(request, model, names)
        run_passes(gm, passes[stage], settings, state.record, numbers, is_sound=True)
    check_stage_without_passes(gm, Stage.PREPARED, passes[Stage.PREPARED], qat)
    if qat:
        warn_of_lost_hooks(copied, gm)
        warn_of_own_train(copied)
        watch_ranges(gm)
    warn_of_foreign_states(gm)
    original = Original.of(model, gm)
    compared = None
    if traced.checked.has_numbers:
        compared = ComparedInputs((Inputs(inputs or (), {}),), original.prepared, is_original=True)
    set_state(gm, replace(state, stage=Stage.PREPARED, original=original, compared=compared))
    return gm


def _check_rules(request: Request, model: nn.Module, names: set[str]) -> None:
    if request.operations is None:
        check_rules(request.recipe.rules, model, names)
    else:
        request.operations.update(names)


def _number_check(inputs: tuple[Any, ...] | None) -> NumberCheck:
    if inputs is None:
        raise PassError("verify=True runs the model before and after each pass: give prepare() example_inputs")
    return NumberCheck(inputs)
