"""Run the passes of the stage CALIBRATED: each that should improve the model is measured, and undone where it hurt."""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule

from fxq.calibration_report import CalibrationReport, CalibrationStep
from fxq.data import Data
from fxq.errors import FxqError, PassError
from fxq.graph.data_stage import DataStage
from fxq.graph.held_out import narrow_again, widen_observed
from fxq.graph.largest_sample import largest_sample
from fxq.graph.members import crowded_members
from fxq.graph.observers import empty_ranges, measured_quantizers, observing_quantizers
from fxq.graph.settings import Settings
from fxq.graph.stale import fit_again, ranges_behind
from fxq.judging import NOTHING_TO_SEE, Corrected, Judge, Saved
from fxq.measured import Measured
from fxq.module_tree import named_modules, named_parameters
from fxq.nn import TensorQuantizer
from fxq.passbase import Pass
from fxq.pipeline import run_passes
from fxq.record import Entry, Record

_MOST_SHOWN = 5
_SAMPLES_TO_CORRECT = 16


def run_calibrated_passes(
    gm: GraphModule, passes: Sequence[Pass], settings: Settings, record: Record, stage: DataStage, begins: bool = True
) -> CalibrationReport:
    """Run ``passes`` on ``gm`` in place, and say what each did.

    Args:
        gm: prepared, in eval mode.
        passes: of the stage CALIBRATED, in order.
        settings: those of ``prepare``.
        record: continued; what an undone pass wrote is taken out.
        stage: the data, and the float model; notes of an undone pass are taken out.
        begins: these are the first passes that see the data.

    Raises:
        FxqError: a pass failed; nothing is restored here.
    """
    judge = Judge(gm, stage)
    if stage.data is not None and begins:
        keep, hold_out = any(not step.streams for step in passes), any(step.improves for step in passes)
        stage.data.begin(keep, hold_out, sample_bytes=largest_sample(gm), model=gm)
    plain: _Plain | None = None
    why_not: str | None = None
    steps, left_out = list[CalibrationStep](), list[str]()
    for index, step in enumerate(passes):
        if step.improves and plain is None and why_not is None:
            if stage.runs_unjudged or judge.can_judge:
                plain = _begin_to_improve(gm, record, judge)
            else:
                why_not = judge.why_not
                _hold_nothing_out(gm, stage)
        if step.improves and why_not is not None:
            left_out.append(step.name)
            record.passes.append(step.name)
            record.add(Entry(step.name, "skip", "", "", f"did not run: {why_not}"))
            continue
        corrector = next((later for later in passes[index + 1 :] if later.corrects), None)
        steps.append(_run(gm, step, settings, record, judge, corrector))
    together = _undo_what_chance_kept(plain, steps, record, judge)
    if stage.data is not None:
        stage.data.ranges_cover_held_out = bool(stage.covering)
    judged = _notes(passes, judge)
    if left_out:
        names = ", ".join(left_out)
        judged = (f"{names} did not run, since {why_not}; ask for an accuracy level to have them run all the same",)
    data, empty, crowded = stage.data, empty_ranges(measured_quantizers(gm)), crowded_members(gm)
    odd = () if data is None or data.note is None else (data.note,)
    about_ranges = [describe_empty(empty)] * bool(empty) + [describe_crowded(crowded)] * bool(crowded)
    batches = 0 if data is None else data.batch_count
    # A forward of the user's own may call the model with anything.
    samples = data.seen if data is not None and data.forward is None else None
    few = () if data is None or not data.is_cut_short else (describe_few(gm, data),)
    of_kept = () if together else tuple(judge.notes)
    failed = (f"{step.name} failed, and was undone: {step.error}" for step in steps if step.error)
    notes = (*judged, *failed, *of_kept, *few, *together, *odd, *about_ranges)
    return CalibrationReport(tuple(steps), notes, empty, crowded, batches, samples, judge.seconds)


def describe_few(gm: GraphModule, data: Data) -> str:
    """Return in words that memory is why fewer samples were kept than there are, and what to do."""
    return (
        f"{data.max_samples} samples at most were kept to learn from, since the largest tensor of the model takes "
        f"{largest_sample(gm) / 2**20:.0f} MiB for each: fxq.Data(batches, max_samples=...) keeps more"
    )


def describe_empty(ranges: Mapping[str, str]) -> str:
    """Return in words what :func:`fxq.graph.observers.empty_ranges` found, and what to do."""
    shown = ", ".join(f"{path} ({what})" for path, what in list(ranges.items())[:_MOST_SHOWN])
    more = f" and {len(ranges) - _MOST_SHOWN} more" if len(ranges) > _MOST_SHOWN else ""
    count = f"{len(ranges)} quantizer{'' if len(ranges) == 1 else 's'}"
    return (
        f"{count} got a single value from all of the data: {shown}{more}. What differs from it will "
        "be clipped: calibrate with typical inputs, and leave in float (a rule with None) what really is constant"
    )


def _run(
    gm: GraphModule, step: Pass, settings: Settings, record: Record, judge: Judge, corrector: Pass | None
) -> CalibrationStep:
    stage, saved = judge.stage, judge.save(record) if step.improves else None
    start, unchanged, entries = time.perf_counter(), len(stage.changed), len(record.entries)
    try:
        run_passes(gm, [step], settings, record, complete=False, data_stage=stage)
        if not step.keeps_ranges:
            _fit_stale(gm, step, record, stage, stage.changed[unchanged:])
        seconds = time.perf_counter() - start
        if not step.streams:
            _check_finite(gm, step)
    except FxqError as error:
        if saved is None or not _may_give_up(stage):
            raise
        return _given_up(step, saved, record, error, time.perf_counter() - start)
    judge.forget()
    if saved is None:
        return CalibrationStep(step.name, None, None, kept=True, seconds=seconds)
    before, after = saved.measured, judge.look()
    assert after is not None
    kept, change = after.is_no_worse_than(before), _change(before.sqnr_db, after.sqnr_db)
    corrected = None if kept or corrector is None else _corrected(gm, saved, corrector, settings, record, judge)
    if corrector is not None and corrected is not None:
        first, second = corrected
        kept = second.is_no_worse_than(first)
        change += f"; with {corrector.name} behind it {_change(first.sqnr_db, second.sqnr_db)}"
        if kept:
            judge.notes.append(f"{step.name} is kept for what it brings in the end: {change}")
    if not kept:
        saved.restore(record)
        record.passes.append(step.name)
        _note_undone(record, step.name, change)
    if corrector is not None and corrected is not None:
        judge.corrected = Corrected(corrector, corrected[1] if kept else corrected[0])
    is_same = torch.equal(before.noise, after.noise)  # what a pass did past the rewriter, no entry tells
    changed = not is_same or any(entry.action == "edit" for entry in record.entries[entries:])
    return CalibrationStep(step.name, before.sqnr_db, after.sqnr_db, kept, seconds, changed)


def _may_give_up(stage: DataStage) -> bool:
    """May a pass fail? Nobody asked for it by name or level, and no other process goes on with it."""
    return not stage.runs_unjudged and (stage.data is None or stage.data.team is None)


def _given_up(step: Pass, saved: Saved, record: Record, error: FxqError, seconds: float) -> CalibrationStep:
    """Undo a pass that failed: the model is good without it."""
    saved.restore(record)
    record.passes.append(step.name)
    _note_undone(record, step.name, f"it failed: {error}")
    warnings.warn(f'{step.name} failed, and was undone: {error}. accuracy="plain" leaves it out', stacklevel=2)
    return CalibrationStep(step.name, saved.measured.sqnr_db, None, kept=False, seconds=seconds, error=str(error))


def _corrected(
    gm: GraphModule, saved: Saved, corrector: Pass, settings: Settings, record: Record, judge: Judge
) -> tuple[Measured, Measured] | None:
    """Return how good the model is with a ``corrector``, without the pass that just ran and with it.

    The corrector sees few samples here, since this takes time; all is as it was afterwards. None where it fails, and
    may: that is told when its own turn comes.
    """
    now, found = judge.save(record), list[Measured]()
    assert now is not None
    assert judge.stage.data is not None
    for state in (saved, now):
        if state.corrected is not None and state.corrected.corrector is corrector:
            found.append(state.corrected.measured)
            continue
        state.restore(record)
        try:
            with judge.stage.data.few(_SAMPLES_TO_CORRECT):
                run_passes(gm, [corrector], settings, record, complete=False, data_stage=judge.stage)
        except FxqError:
            if not _may_give_up(judge.stage):
                raise
            now.restore(record)
            return None
        judge.forget()
        measured = judge.look()
        assert measured is not None
        found.append(measured)
    now.restore(record)
    return found[0], found[1]


def _begin_to_improve(gm: GraphModule, record: Record, judge: Judge) -> "_Plain | None":
    """Return the model of the plain recipe, which holds nothing out; leave its ranges as they are good to start from.

    That is with what the samples held out add to them, unless they themselves have less error without.
    """
    stage = judge.stage
    if stage.data is None or not judge.samples or stage.covering is not None:
        return None
    observers = observing_quantizers(gm)
    before = widen_observed(gm, observers, stage.data)
    stage.covering = set(before)
    saved = judge.save(record)
    stage.covering = narrow_again(gm, observers, before, stage.data)
    judge.forget()
    start = judge.look()
    return None if saved is None or start is None else _Plain(saved, start)


def _hold_nothing_out(gm: GraphModule, stage: DataStage) -> None:
    """Make ranges those of the plain recipe, which sees all samples."""
    if stage.data is not None and stage.data.judging(gm):
        widen_observed(gm, observing_quantizers(gm), stage.data)
        stage.data.hold_nothing_out()


def _undo_what_chance_kept(
    plain: "_Plain | None", steps: list[CalibrationStep], record: Record, judge: Judge
) -> tuple[str, ...]:
    """Leave the plain recipe's model where what the passes that were kept gain together may be chance; note it.

    Each was kept for not being worse on few samples. Of many such passes some are worse on others, and where there is
    little to gain, so may be all of them. Where none changed anything there is nothing to note.
    """
    after = judge.look()
    if plain is None or after is None:
        return ()
    changed = not torch.equal(after.noise, plain.start.noise)
    if changed and after.gains_for_certain(plain.start):
        return ()
    ran, declined = record.passes, [entry for entry in record.entries if entry.action == "skip"]
    plain.saved.restore(record)
    if not changed:
        record.passes = ran
        for entry in declined:
            record.add(entry)
        return ()
    change = f"{plain.start.sqnr_db:.2f} dB before all, {after.sqnr_db:.2f} dB after"
    for index, step in enumerate(steps):
        if step.sqnr_after_db is None and not step.error:
            continue
        record.passes.append(step.name)
        if step.error:
            _note_undone(record, step.name, f"it failed: {step.error}")
        elif step.kept:
            _note_undone(record, step.name, f"what is gained may be chance: {change}")
            steps[index] = replace(step, kept=False)
        else:
            _note_undone(record, step.name, _change(step.sqnr_before_db, step.sqnr_after_db))
    return (f"all undone, since what they gain together may be chance on so few samples: {change}",)


def _change(before_db: float | None, after_db: float | None) -> str:
    return f"{before_db:.2f} dB before, {after_db:.2f} dB after it"


def _note_undone(record: Record, name: str, why: str) -> None:
    record.add(Entry(name, "skip", "", "", f"undone: {why}"))


def _fit_stale(gm: GraphModule, step: Pass, record: Record, stage: DataStage, changed: Sequence[str]) -> None:
    stale = ranges_behind(gm, changed) if changed else {}
    if stale and stage.data is not None:
        fit_again(gm, stale, stage)
        record.add(Entry(step.name, "edit", "", "", f"ranges behind what it changed, fitted again: {', '.join(stale)}"))


def _check_finite(gm: GraphModule, step: Pass) -> None:
    """Refuse NaN and infinity that a pass wrote past ``rw.set_weight`` and ``quantizer.amax = ...``, which look."""
    for path, parameter in named_parameters(gm):
        if not bool(torch.isfinite(parameter).all()):
            raise PassError(f"after pass {step.name!r} the parameter {path!r} holds NaN or infinity")
    for path, quantizer in named_modules(gm):
        if isinstance(quantizer, TensorQuantizer) and quantizer.has_range:
            low, high = quantizer.range
            if not bool((torch.isfinite(low) & torch.isfinite(high) & (low <= high)).all()):
                raise PassError(
                    f"after pass {step.name!r} the range of quantizer {path!r} is negative or not finite: assign "
                    "ranges (quantizer.amax = ..., or quantizer.range = (low, high)), which are looked at then"
                )


def _notes(passes: Sequence[Pass], judge: Judge) -> tuple[str, ...]:
    names, data = [step.name for step in passes if step.improves], judge.stage.data
    if not names or data is None:
        return ()
    unmeasured = f"{', '.join(names)} ran without being measured"
    if data.held_out == 0:
        return (f"no sample was held out (held_out=0): {unmeasured}",)
    if not judge.samples:
        return (f"{_too_few(data)}: {unmeasured}",)
    if judge.look() is None:
        return (f"{NOTHING_TO_SEE}: {unmeasured}",)
    then = "; ranges took them in" if data.ranges_cover_held_out else ""
    few = "" if judge.has_enough else ": too few to tell a gain from chance"
    return (f"measured on {judge.samples} samples that no pass saw, of {data.seen}{then}{few}",)


def _too_few(data: Data) -> str:
    """Return in words why none was held out of the samples, and what would do."""
    enough = math.ceil(1 / data.held_out)
    if data.seen < enough:
        return f"{data.seen} samples are too few to hold any out ({enough} would do)"
    if data.max_samples < enough:
        return f"the {data.max_samples} samples of max_samples= are too few to hold any out ({enough} would do)"
    return "no batch could be held out, for they are few, and cannot be taken apart: give smaller ones"


def describe_crowded(ranges: Mapping[str, str]) -> str:
    """Return in words what :func:`fxq.graph.members.crowded_members` found, and what to do."""
    shown = "; ".join(f"{name}: {what}" for name, what in list(ranges.items())[:_MOST_SHOWN])
    more = f", and {len(ranges) - _MOST_SHOWN} more" if len(ranges) > _MOST_SHOWN else ""
    rules = ", ".join(f'("{name}", None)' for name in list(ranges)[:_MOST_SHOWN])
    return (
        f"{len(ranges)} operations join, or read joined, tensors of unlike ranges in one range, where the small ones "
        f"keep next to nothing ({shown}{more}). Leave them in float: fxq.recipe(...).with_rules({rules})"
    )


@dataclass(frozen=True)
class _Plain:
    """What passes begin with that should improve the model.

    Args:
        saved: the model of the plain recipe, whose ranges cover all samples held out.
        start: how good the model is that they begin with, some of whose ranges do not. What they gain is a gain over
            this: ranges that cover just the samples to judge by look better than they are.
    """

    saved: Saved
    start: Measured
