"""Calibrate islands: all observe while the whole runs; passes that improve then see what the whole gave to each."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor
from torch.fx import GraphModule

from fxq.batches import Inputs, call
from fxq.calibration_report import CalibrationReport
from fxq.calibration_run import run_calibrated_passes
from fxq.data import Data
from fxq.float_reference import ComparedInputs
from fxq.graph.data_stage import DataStage
from fxq.graph.float_model import copied_weights, in_float
from fxq.graph.observers import observing_quantizers
from fxq.graph.weight_changes import WeightChanges
from fxq.islands.calls import record_calls
from fxq.islands.layout import Islands
from fxq.model_checks import levels_to_caller
from fxq.original import checksum
from fxq.passbase import Pass
from fxq.stage import Stage
from fxq.state import State, require_state, set_state


def calibrate_islands(
    prepared: GraphModule,
    state: State,
    islands: Islands,
    passes: Sequence[Pass],
    data: Data | None,
    unjudged: bool,
) -> tuple[CalibrationReport, State]:
    """Run the CALIBRATED passes; return what they did, and the state of the calibrated whole.

    Passes that only stream run once, on the whole. The others run on each island, with what the kept batches gave to
    it as its data; their steps are named ``pass @ island``.
    """
    modules = islands.modules(prepared)
    untrained = {path for path, gm in modules.items() if _is_untrained(gm)}
    is_untrained = state.original is not None and checksum(prepared) == state.original.prepared
    streaming = [step for step in passes if step.streams]
    improving = [step for step in passes if not step.streams]
    start = copied_weights(prepared) if improving else None
    record = state.record.copy(without={step.name for step in passes})
    if data is not None:
        data.begin(keep=bool(improving), hold_out=any(step.improves for step in improving), are_whole=True)
    report = run_calibrated_passes(prepared, streaming, state.settings, record, DataStage(data, None), begins=False)
    _warn_of_unreached(modules)
    steps, notes = list(report.steps), list(report.notes)
    stages = {path: DataStage() for path in modules}
    states = {path: require_state(gm, Stage.PREPARED, "calibrate") for path, gm in modules.items()}
    if data is not None and improving:
        kept, held_out = data.kept(prepared), data.judging(prepared)
        calls = _calls(prepared, modules, [*kept, *held_out], start)
        for path, gm in modules.items():
            found, states[path], stages[path] = _improve(gm, states[path], improving, calls[path], data, unjudged)
            steps += [replace(step, name=f"{step.name} @ {path}") for step in found.steps]
            notes += [f"{path}: {note}" for note in found.notes]
    shown = _calls(prepared, modules, [] if data is None else data.compared, start)
    for path, gm in modules.items():
        compared = states[path].compared
        if shown[path]:
            compared = ComparedInputs(tuple(shown[path]), checksum(gm), path in untrained)
        changes = WeightChanges() if start is None else WeightChanges.since(_of(start, path), gm, stages[path])
        set_state(gm, replace(states[path], stage=Stage.CALIBRATED, compared=compared, changes=changes))
    whole = state.compared
    if data is not None and data.compared:
        whole = ComparedInputs(tuple(data.compared), checksum(prepared), is_untrained)
    changes = WeightChanges() if start is None else WeightChanges.since(start, prepared, DataStage())
    # A batch may be a list of images, or one video: nobody knows how many samples that is.
    report = replace(report, steps=tuple(steps), notes=tuple(notes), samples=None)
    return report, replace(state, stage=Stage.CALIBRATED, record=record, changes=changes, compared=whole)


def _calls(
    prepared: GraphModule,
    modules: Mapping[str, GraphModule],
    inputs: Sequence[Inputs],
    weights: Mapping[str, Tensor] | None,
) -> dict[str, list[Inputs]]:
    """Return what the whole gives to each island on ``inputs``, in float."""
    with in_float(prepared, weights):
        return record_calls(prepared, modules, inputs)


def _improve(
    gm: GraphModule, state: State, passes: Sequence[Pass], calls: Sequence[Inputs], data: Data, unjudged: bool
) -> tuple[CalibrationReport, State, DataStage]:
    """Run passes on one island; return what they did, its state then, and what they noted."""
    if not calls:
        note = f"{', '.join(step.name for step in passes)} did not run: no batch reached it"
        return CalibrationReport((), (note,)), state, DataStage()
    own = Data(calls, _feed, data.max_samples, data.held_out, progress=False)
    record = state.record.copy(without={step.name for step in passes})
    own.begin(keep=True, hold_out=any(step.improves for step in passes), model=gm)
    own.kept(gm)
    stage = DataStage(own, copied_weights(gm), runs_unjudged=unjudged)
    report = run_calibrated_passes(gm, passes, state.settings, record, stage, begins=False)
    return report, replace(state, record=record), stage


def _feed(gm: GraphModule, inputs: Inputs) -> None:
    call(gm, *inputs.args, **inputs.kwargs)


def _is_untrained(gm: GraphModule) -> bool:
    state = require_state(gm, Stage.PREPARED, "calibrate")
    return state.original is not None and checksum(gm) == state.original.prepared


def _of(weights: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    prefix = f"model.{path}."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _warn_of_unreached(modules: Mapping[str, GraphModule]) -> None:
    """Name the islands that no batch reached."""
    missed = []
    for path, gm in modules.items():
        observers = observing_quantizers(gm)
        if observers and not any(quantizer.has_range for quantizer in observers.values()):
            missed.append(path)
    if missed:
        warnings.warn(
            f"no batch reached {', '.join(map(repr, missed))}: its quantizers have no range. Calibrate with data for "
            "which it runs, or leave it in float by a rule with None",
            stacklevel=levels_to_caller(),
        )
