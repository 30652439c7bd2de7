"""Run the passes of convert, and hold them to the numbers of the prepared model, where it is known what it takes.

That is the example inputs, or else a batch of the samples that calibration kept to compare on.

Without ``verify`` the two ends are compared once, around passes that promise nothing. Where they differ, the passes run
again on a fresh copy, one by one, to find out which it was.
"""

from typing import Any

from torch.fx import GraphModule

from fxq.calibration_run import describe_empty
from fxq.compare.outputs import Seen
from fxq.errors import FxqError, InputError, PassError
from fxq.graph.modules import copy_graph, graphs_in
from fxq.graph.moved import follow_move
from fxq.graph.observers import empty_ranges, measured_quantizers
from fxq.graph.range_watch import check_ranges, stop_watching
from fxq.graph.stored import fit_weights, weight_quantizers
from fxq.graph.training import settle_modes
from fxq.module_tree import all_modules
from fxq.nn import TensorQuantizer
from fxq.number_check import NumberCheck
from fxq.pipeline import check_stage_without_passes, run_passes
from fxq.record import Record
from fxq.stage import Stage
from fxq.state import State


def run_conversion(prepared: GraphModule, state: State) -> tuple[GraphModule, Record, Seen | None]:
    """Return a lowered copy of ``prepared``, the record continued, and what the copy was seen to make of which inputs.

    Raises:
        PassError: a pass failed, or moved the numbers further than it promises.
        InputError: the prepared model no longer runs on what it was prepared or calibrated with.
        RangeError: the last step of training made a range negative or not finite.
    """
    check_ranges(prepared)
    gm, inputs = _copied(prepared, state)
    if inputs is None or not _has_all_ranges(gm):
        return gm, _run(gm, state, None), None
    try:
        numbers = _watched(gm, inputs, each_pass=state.verify)
        return gm, _run(gm, state, numbers), numbers.last_seen
    except PassError:
        if state.verify:
            raise
    # Looking at both ends finds that something is wrong; what each pass does by itself is what it has promised.
    again, inputs = _copied(prepared, state)
    try:
        numbers = _watched(again, inputs or (), each_pass=True)
        return again, _run(again, state, numbers), numbers.last_seen
    except PassError as error:
        empty = empty_ranges(measured_quantizers(prepared))
        if not empty:
            raise
        raise PassError(f"{error}. Or the data is why: {describe_empty(empty)}") from error


def _copied(prepared: GraphModule, state: State) -> tuple[GraphModule, tuple[Any, ...] | None]:
    """Return a copy in eval mode, and inputs to run it on, where the model is now; None where there are none."""
    gm = copy_graph(prepared).eval()
    settle_modes(gm)
    for _, graph in graphs_in(gm):
        stop_watching(graph)
    inputs = state.known_inputs(gm)
    moved = follow_move(gm, inputs or ())
    return gm, None if inputs is None else moved


def _run(gm: GraphModule, state: State, numbers: NumberCheck | None) -> Record:
    passes, record = state.recipe.create_passes(), state.record.copy()
    for stage in (Stage.FROZEN, Stage.LOWERED):
        run_passes(gm, passes[stage], state.settings, record, numbers, is_sound=stage is Stage.LOWERED)
        check_stage_without_passes(gm, stage, passes[stage])
    if numbers is not None:
        numbers.finish(gm)
    return record


def _has_all_ranges(gm: GraphModule) -> bool:
    """Return whether every activation quantizer has what it takes; where one has not, a pass says so."""
    found = [module for module in all_modules(gm) if isinstance(module, TensorQuantizer)]
    without = {id(one) for one in found if not (one.has_range or one.is_dynamic or not one.is_enabled)}
    return not without or without <= {id(quantizer) for _, _, quantizer in weight_quantizers(gm)}


def _watched(gm: GraphModule, inputs: tuple[Any, ...], each_pass: bool) -> NumberCheck:
    """Return a check that has seen the prepared model.

    Raises:
        InputError: it does not run on the inputs.
    """
    fit_weights(gm, only_missing=True)  # a pass will do that, and may do no more
    numbers = NumberCheck(inputs, each_pass)
    try:
        numbers.look_at(gm)
    except (FxqError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the model's own code runs: it may raise anything
        raise InputError(
            f"the prepared model does not run on the inputs that prepare() or calibrate() got: {type(error).__name__}: "
            f"{error}; convert compares its numbers on them, so prepare again with inputs that it runs on"
        ) from error
    return numbers
