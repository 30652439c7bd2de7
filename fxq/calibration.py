"""Calibration: data flows through the float model, observers look, ranges are fitted, and can be fitted again."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxq.batches import Forward, feed
from fxq.calib import HistogramCalibrator
from fxq.calib.weights import fit_weight_range
from fxq.errors import CalibrationError, InputError
from fxq.graph.stored import fit_weights, weight_quantizers
from fxq.nn import TensorQuantizer
from fxq.progress import track
from fxq.quant.registry import find_fit
from fxq.stage import Stage
from fxq.state import require_state

_MOST_SHOWN = 5


def calibrate(
    prepared: GraphModule, batches: Iterable[Any] | None = None, forward: Forward | None = None, progress: bool = True
) -> None:
    """Observe the activations of the float model on ``batches``, then fit all ranges.

    One pass over the data in constant memory. A second call starts anew. The model runs in eval mode; its mode and the
    switches of its quantizers are as before afterwards. When a batch fails, no range has changed. Where no quantizer
    waits for data (recipes "dynamic" and "weight_only"), batches are not looked at, with a warning.

    Args:
        prepared: the result of ``fxq.prepare``.
        batches: tensors, tuples of inputs, dicts of keyword inputs, or (input, label) pairs of a DataLoader; None only
            where no quantizer waits for data.
        forward: ``forward(model, batch)`` for batches of any other form.
        progress: show a bar, if stderr is a terminal.

    Raises:
        CalibrationError: there is no batch, or a quantizer saw NaN or infinity.
        InputError: a batch does not fit the model.
    """
    state = require_state(prepared, Stage.PREPARED, "calibrate")
    observers = observing_quantizers(prepared)
    if not observers:
        if batches is not None:
            warnings.warn(
                f"there is nothing to calibrate: with recipe {state.recipe.name!r} no quantizer of this model waits "
                "for data. Its weights were fitted; the batches were not used",
                stacklevel=2,
            )
        calibrate_weights(prepared)
        return
    if batches is None:
        raise CalibrationError(
            f"{len(observers)} quantizers wait for data, such as {next(iter(observers))!r}: pass batches of typical "
            "inputs, or take a recipe that needs none ('dynamic' or 'weight_only')"
        )
    _forget(observers)
    if isinstance(batches, Tensor):
        batches = [batches]  # iterating it would take the batch apart
    if not isinstance(batches, Iterable):
        raise InputError(f"batches must be an iterable of batches, got {type(batches).__name__}")
    count = 0
    try:
        with _observing(prepared, observers), torch.no_grad():
            for index, batch in enumerate(track(batches, "Calibrating", progress)):
                feed(prepared, batch, forward, index)
                count += 1
    except BaseException:
        _forget(observers)  # half the data must not pass for all of it in fit_ranges
        raise
    if count == 0:
        raise CalibrationError("there was no batch to calibrate with: the loader is empty, or an iterator was used up")
    _fit(observers, {}, progress)
    calibrate_weights(prepared)


def fit_ranges(prepared: GraphModule, method: str | None = None, **options: Any) -> None:
    """Fit the activation ranges again, by another method, without the data.

    Args:
        prepared: calibrated with a recipe whose calibrator keeps a histogram (the default does).
        method: "max", "percentile", "mse", "entropy" or one registered by ``fxq.register_fit``; None for what the
            recipe says.
        **options: of the method, such as ``percentile=99.99``, ``start_bin=128``, ``stride=1``.

    Raises:
        CalibrationError: the model was not calibrated, only its maxima were kept, there is no such method, or it has
            no such option.
    """
    require_state(prepared, Stage.PREPARED, "fit_ranges")
    observers = observing_quantizers(prepared)
    chosen = options if method is None else {"method": method, **options}
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
    _fit(observers, chosen, progress=False)


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
        CalibrationError: a weight holds NaN or infinity, or a method does not fit its descriptor.
    """
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


def observing_quantizers(model: nn.Module) -> dict[str, TensorQuantizer]:
    """Return the enabled quantizers of activations whose range comes from data, by module path."""
    return {path: found for path, found in activation_quantizers(model).items() if found.calibrator is not None}


def activation_quantizers(model: nn.Module) -> dict[str, TensorQuantizer]:
    """Return the enabled quantizers of ``model`` that are not a weight's, by module path."""
    weights = {id(quantizer) for _, _, quantizer in weight_quantizers(model)}
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, TensorQuantizer) and id(module) not in weights and module.is_enabled
    }


def _forget(observers: dict[str, TensorQuantizer]) -> None:
    for quantizer in observers.values():
        quantizer.calibrator.reset()  # type: ignore[union-attr]


def _fit(observers: dict[str, TensorQuantizer], options: dict[str, Any], progress: bool) -> None:
    """Fit all ranges, or none: a range is stored when every one was found."""
    found: dict[str, tuple[Tensor, ...]] = {}
    for path, quantizer in track(list(observers.items()), "Fitting ranges", progress):
        try:
            bounds = quantizer.compute_calib_range(**options)
        except TypeError as error:
            raise CalibrationError(
                f"quantizer {path!r}: {type(quantizer.calibrator).__name__} cannot fit with {options}: {error}"
            ) from error
        if bounds is not None:
            found[path] = bounds
    if observers and not found:
        raise CalibrationError(
            "no quantizer has seen data: run fxq.calibrate(prepared, batches) first; forward=, if you pass it, must "
            "call the model that it is given"
        )
    for path, bounds in found.items():
        if len(bounds) == 1:
            observers[path].amax = bounds[0]
        else:
            observers[path].range = (bounds[0], bounds[1])


@contextmanager
def _observing(prepared: GraphModule, observers: dict[str, TensorQuantizer]) -> Iterator[None]:
    """Let observers look at the float model in eval mode; restore modes and switches afterwards."""
    modes = [(module, module.training) for module in prepared.modules()]
    quantizers = [module for module in prepared.modules() if isinstance(module, TensorQuantizer)]
    switches = [(module, module.is_quant_enabled, module.is_calib_enabled) for module in quantizers]
    prepared.eval()
    try:
        for quantizer in quantizers:
            quantizer.disable_quant()
        for quantizer in observers.values():
            quantizer.enable_calib()
        yield
    finally:
        for module, training in modes:
            module.training = training
        for quantizer, quant, calib in switches:
            (quantizer.enable_quant if quant else quantizer.disable_quant)()
            (quantizer.enable_calib if calib else quantizer.disable_calib)()
