"""Calibration: data flows through the model, ranges are fitted, and can be fitted again."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn
from torch.fx import GraphModule

from fxq.batches import Forward
from fxq.calib import HistogramCalibrator
from fxq.calib.weights import fit_weight_range
from fxq.calibration_report import CalibrationReport
from fxq.calibration_run import describe_crowded, describe_empty, run_calibrated_passes
from fxq.data import Data
from fxq.distributed import team_of_now
from fxq.errors import CalibrationError, InputError, PassError, StageError
from fxq.float_reference import ComparedInputs
from fxq.graph.data_stage import DataStage
from fxq.graph.float_model import copied_weights
from fxq.graph.observers import (
    check_shareable,
    empty_ranges,
    fit_observed,
    forget,
    measured_quantizers,
    observing_quantizers,
)
from fxq.graph.snapshot import Snapshot
from fxq.graph.stored import fit_weights, weight_quantizers
from fxq.graph.weight_changes import WeightChanges
from fxq.islands.calibration import calibrate_islands
from fxq.module_tree import all_modules
from fxq.nn import TensorQuantizer
from fxq.original import checksum
from fxq.passbase import Pass
from fxq.quant.registry import find_fit
from fxq.stage import Stage
from fxq.state import State, check_has_all, check_values, require_state, set_state
from fxq.surroundings import in_plain_surroundings

_MOST_SHOWN = 5


@in_plain_surroundings
def calibrate(
    prepared: GraphModule,
    batches: Iterable[Any] | Data | None = None,
    forward: Forward | None = None,
    progress: bool = True,
    *,
    unjudged: bool = True,
) -> CalibrationReport:
    """Run the recipe's CALIBRATED passes: observe the float model on ``batches``, fit all ranges, then improve.

    The batches are read once. Without passes that improve, memory is constant; with them, ``fxq.Data`` says how many
    samples are kept. A second call starts anew, from the weights that ``prepare`` made, or that training or
    ``load_state_dict`` left since. The model runs in eval mode; its mode and the switches of its quantizers are as
    before afterwards. When a batch or a pass fails, weights and ranges are as before. Where nothing waits for data
    (recipes "dynamic" and "weight_only"), batches are not looked at, with a warning; others name the quantizers for
    which the data held a single value, and what joins tensors of ranges too unlike for one.

    Args:
        prepared: the result of ``fxq.prepare``.
        batches: tensors, tuples of inputs, dicts of keyword inputs, or (input, label) pairs of a DataLoader; or a
            ``fxq.Data``, which says what to keep of them; None only where nothing waits for data.
        forward: ``forward(model, batch)`` for batches of any other form.
        progress: show a bar, if stderr is a terminal.
        unjudged: run passes that improve even where fewer than four samples can be held out to judge them by (one in
            eight, so of fewer than 32); False leaves them out then, and the report says so. It also undoes one that
            fails, with a warning, unless several processes run it: nobody asked for it.

    Where torch.distributed runs several processes (torchrun), all of them call this, each with its share of the
    batches: what they saw is merged by one collective, and each ends with the model that one process would have that
    read all batches, the first of each rank, then the second, and so on. With passes that improve, the samples that are
    kept are exchanged too, and every process runs the passes, which share out their searches (``rw.share_out``). A
    process that fails stops them all. ``fxq.Data(..., share=False)``: this process alone.

    Returns:
        What each pass did, measured for those that improve.

    Raises:
        CalibrationError: there is no batch, or a quantizer saw NaN or infinity.
        InputError: a batch does not fit the model.
        PassError: a pass failed.
    """
    state = require_state(prepared, Stage.PREPARED, "calibrate")
    check_values(prepared, "calibrate")
    passes = state.recipe.create_passes()[Stage.CALIBRATED]
    data = _as_data(batches, forward, progress)
    observers = observing_quantizers(prepared)
    if observers and data is None:
        raise CalibrationError(
            f"{len(observers)} quantizers wait for data, such as {next(iter(observers))!r}: pass batches of typical "
            "inputs, or take a recipe that needs none ('dynamic' or 'weight_only')"
        )
    if observers and not passes:
        raise CalibrationError(
            f"{len(observers)} quantizers wait for data, and no pass of the recipe {state.recipe.name!r} shows them "
            "any: add observe_ranges and fit_ranges"
        )
    if data is not None and not needs_data(prepared):
        warnings.warn(
            f"there is nothing to calibrate: with recipe {state.recipe.name!r} no quantizer of this model waits "
            "for data. Its weights were fitted; the batches were not used",
            stacklevel=3,
        )
    if data is not None and data.share and team_of_now() is not None:
        _check_shared(state, observers)
    snapshot = Snapshot(prepared, has_weights=_may_change_weights(passes) or not state.changes.are_none)
    try:
        with _eval_mode(prepared):
            _start_anew(prepared, state)
            report, calibrated = _run(prepared, state, passes, data, unjudged)
        if data is not None and data.team is not None and not data.team.is_over:
            data.team.exchange("that all passes are done", None, is_last=True)
    except BaseException as error:
        snapshot.restore()
        forget(observers)  # half the data must not pass for all of it in fit_ranges
        if data is not None and data.team is not None and isinstance(error, Exception):
            data.team.tell(error)
        raise
    set_state(prepared, replace(calibrated, calibration=report))
    if report.empty_ranges:
        warnings.warn(describe_empty(report.empty_ranges), stacklevel=2)
    if report.crowded_ranges:
        warnings.warn(describe_crowded(report.crowded_ranges), stacklevel=2)
    return report


def _check_shared(state: State, observers: Mapping[str, TensorQuantizer]) -> None:
    """Refuse what several processes cannot calibrate together."""
    if state.islands is not None:
        raise StageError(
            "a model with islands is calibrated by one process: pass fxq.Data(batches, share=False), with all of the "
            "data, in each of them"
        )
    check_shareable(observers)


def needs_data(prepared: GraphModule) -> bool:
    """Return whether a quantizer waits for data, or a pass of the recipe learns from it."""
    state = require_state(prepared, Stage.PREPARED, "calibrate")
    passes = state.recipe.create_passes()[Stage.CALIBRATED]
    return bool(observing_quantizers(prepared)) or _may_change_weights(passes)


@in_plain_surroundings
def fit_ranges(prepared: GraphModule, method: str | None = None, **options: Any) -> None:
    """Fit the activation ranges again, by another method, without the data.

    Args:
        prepared: calibrated with a recipe whose calibrator keeps a histogram (the default does).
        method: "max", "percentile", "mse", "entropy" or one registered by ``fxq.register_fit``; None for what the
            recipe says.
        **options: of the method, such as ``percentile=99.99``, ``start_bin=128``, ``stride=1``.

    Raises:
        CalibrationError: the model was not calibrated, only its maxima were kept, there is no such method, or it has
            no such option; or a percentile is a fraction, or no percentage.
    """
    require_state(prepared, Stage.PREPARED, "fit_ranges")
    check_has_all(prepared, "fit_ranges")
    observers = observing_quantizers(prepared)
    chosen = options if method is None else {"method": method, **options}
    _check_percentile(options.get("percentile"))
    if method is not None:
        find_fit(method)
    if method not in (None, "max"):
        without = [path for path, found in observers.items() if not isinstance(found.calibrator, HistogramCalibrator)]
        if without:
            raise CalibrationError(
                f"{method!r} needs histograms, and {len(without)} quantizers kept none "
                f"({', '.join(without[:_MOST_SHOWN])}): calibrate with recipe.replace(calibrator='histogram'); "
                "for one that you placed by hand, call its use_calibrator('histogram') before fxq.calibrate"
            )
    fit_observed(observers, chosen)
    if empty := empty_ranges(measured_quantizers(prepared)):
        warnings.warn(describe_empty(empty), stacklevel=2)


@in_plain_surroundings
def calibrate_weights(
    model: nn.Module,
    method: str | None = None,
    perchannel: bool = True,
    percentile: float = 99.99,
    num_bins: int = 2048,
) -> None:
    """Fit the weight quantizers of ``model`` to its weights, in place; a fixed range, or a disabled one, stays.

    Args:
        model: any model with quantized modules.
        method: as of ``fit_ranges``, each channel with a histogram of its own; None for the calibrator that each
            quantizer has.
        perchannel: False gives a quantizer whose descriptor has an axis one range for the whole weight.
        percentile: of method "percentile".
        num_bins: least number of bins of each histogram.

    Raises:
        CalibrationError: a weight holds NaN or infinity, a method does not fit its descriptor, or the percentile is a
            fraction or no percentage.
    """
    _check_percentile(percentile)
    if method is None and perchannel:
        fit_weights(model)
        return
    for path, weight, quantizer in weight_quantizers(model):
        if quantizer.calibrator is None or not quantizer.is_enabled:
            continue
        descriptor = quantizer.descriptor if perchannel else quantizer.descriptor.replace(axis=None, block_size=None)
        try:
            bounds = fit_weight_range(weight, descriptor, method or "max", percentile, num_bins)
        except CalibrationError as error:
            raise CalibrationError(f"weight of {path!r}: {error}") from error
        scaled = [bound * (descriptor.scale_amax or 1.0) for bound in bounds]
        if descriptor.symmetric:
            quantizer.amax = scaled[0]
        else:
            quantizer.range = (scaled[0], scaled[1])


def _check_percentile(percentile: Any) -> None:
    """Refuse what is no percentage, and a fraction: it would be taken for one, and cut nearly all values off."""
    if isinstance(percentile, int | float) and not 0 <= percentile <= 100:
        raise CalibrationError(f"percentile is a percentage of the values, from 0 to 100, got {percentile:g}")
    if isinstance(percentile, int | float) and 0 < percentile <= 1:
        raise CalibrationError(
            f"percentile={percentile:g} would keep {percentile:g} % of the values: it is a percentage, so write "
            f"percentile={100 * percentile:g}"
        )


def _as_data(batches: Iterable[Any] | Data | None, forward: Forward | None, progress: bool) -> Data | None:
    if batches is None:
        return None
    if not isinstance(batches, Data):
        return Data(batches, forward, progress=progress)
    if forward is not None:
        raise InputError("fxq.Data holds a forward of its own: give forward to it, not to calibrate")
    return batches


def _may_change_weights(passes: Sequence[Pass]) -> bool:
    return any(not step.streams for step in passes)


def _start_anew(prepared: GraphModule, state: State) -> None:
    """Undo what an earlier calibration did; of islands first, whose modules are the whole's."""
    for gm in () if state.islands is None else state.islands.modules(prepared).values():
        require_state(gm, Stage.PREPARED, "calibrate").changes.undo(gm)
    state.changes.undo(prepared)


def _run(
    prepared: GraphModule, state: State, passes: Sequence[Pass], data: Data | None, unjudged: bool
) -> tuple[CalibrationReport, State]:
    """Run the passes; return what they did, and the state of the calibrated model."""
    if state.islands is not None:
        return calibrate_islands(prepared, state, state.islands, passes, data, unjudged)
    record = state.record.copy(without={step.name for step in passes})
    is_untrained = state.original is not None and checksum(prepared) == state.original.prepared
    start = copied_weights(prepared) if _may_change_weights(passes) else None
    stage = DataStage(data, None if start is None else dict(start), runs_unjudged=unjudged)
    report = run_calibrated_passes(prepared, passes, state.settings, record, stage)
    if data is not None and data.is_unmerged:
        raise PassError(
            "a pass of the recipe read the batches, of which each process has a share, and none merged what they saw: "
            "call fxq.graph.share_observations(rw.gm, observers, rw.data) behind rw.data.feed"
        )
    changes = WeightChanges() if start is None else WeightChanges.since(start, prepared, stage)
    compared = state.compared
    if data is not None and data.compared:
        compared = ComparedInputs(tuple(data.compared), checksum(prepared), is_untrained, data.learned_from_compared)
    return report, replace(state, stage=Stage.CALIBRATED, record=record, changes=changes, compared=compared)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules in eval mode; each is in its own again afterwards."""
    modes = [(module, module.training) for module in all_modules(model)]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
