"""Observers: the quantizers that wait for data, what they see, and the ranges that follow."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxq.data import Data
from fxq.errors import CalibrationError
from fxq.graph.match import is_constant, is_quantizer
from fxq.graph.members import merge_members, noted_members, noting_members
from fxq.graph.modules import deep_copy, graphs_in
from fxq.graph.stored import weight_quantizers
from fxq.module_tree import all_modules, named_modules
from fxq.nn import TensorQuantizer
from fxq.original import checksum
from fxq.progress import track


def observing_quantizers(model: nn.Module) -> dict[str, TensorQuantizer]:
    """Return the enabled quantizers of activations whose range comes from data, by module path."""
    return {path: found for path, found in activation_quantizers(model).items() if found.calibrator is not None}


def activation_quantizers(model: nn.Module) -> dict[str, TensorQuantizer]:
    """Return the enabled quantizers of ``model`` that are not a weight's, by module path."""
    weights = {id(quantizer) for _, _, quantizer in weight_quantizers(model)}
    return {
        path: module
        for path, module in named_modules(model)
        if isinstance(module, TensorQuantizer) and id(module) not in weights and module.is_enabled
    }


def measured_quantizers(gm: GraphModule) -> dict[str, TensorQuantizer]:
    """Return those of :func:`observing_quantizers` that see more than stored tensors, which may well be constant."""
    fixed = {
        f"{path}.{node.target}".lstrip(".")
        for path, part in graphs_in(gm)
        for node in part.graph.nodes
        if is_quantizer(node) and is_constant(node.all_input_nodes[0])
    }
    return {path: found for path, found in observing_quantizers(gm).items() if path not in fixed}


def check_calibrated(gm: GraphModule, call: str) -> None:
    """Raise a CalibrationError if a quantizer has no range, and would take that of what it is given."""
    without = [path for path, one in activation_quantizers(gm).items() if not (one.has_range or one.is_dynamic)]
    if without:
        raise CalibrationError(
            f"{call} needs ranges, and {len(without)} quantizers have none, such as {without[0]!r}: call "
            "fxq.calibrate(prepared, batches) first"
        )


def forget(observers: Mapping[str, TensorQuantizer]) -> None:
    """Let the calibrators forget what they saw."""
    for quantizer in observers.values():
        quantizer.calibrator.reset()  # type: ignore[union-attr]


@contextmanager
def observing(model: nn.Module, observers: Mapping[str, TensorQuantizer]) -> Iterator[None]:
    """Let observers look at the float model; the switches of all quantizers are as before afterwards."""
    with only_observing(model, observers), noting_members(model):
        yield


@contextmanager
def only_observing(model: nn.Module, observers: Mapping[str, TensorQuantizer]) -> Iterator[None]:
    """The same, without a note of how large the members of what is joined are: those noted before stay."""
    quantizers = [module for module in all_modules(model) if isinstance(module, TensorQuantizer)]
    switches = [(module, module.is_quant_enabled, module.is_calib_enabled) for module in quantizers]
    try:
        for quantizer in quantizers:
            quantizer.disable_quant()
        for quantizer in observers.values():
            quantizer.enable_calib()
        yield
    finally:
        for quantizer, quant, calib in switches:
            (quantizer.enable_quant if quant else quantizer.disable_quant)()
            (quantizer.enable_calib if calib else quantizer.disable_calib)()


def check_shareable(observers: Mapping[str, TensorQuantizer]) -> None:
    """Raise a CalibrationError for a calibrator that several processes cannot merge to what one would hold."""
    ordered = {path: found.calibrator for path, found in observers.items() if found.calibrator is not None}
    inexact = [path for path, found in ordered.items() if not found.merges_exactly]
    if inexact:
        raise CalibrationError(
            f"{len(inexact)} quantizers, such as {inexact[0]!r}, observe by "
            f"{type(ordered[inexact[0]]).__name__}, whose result depends on the order of the batches, and several "
            "processes have none: take calibrator='minmax' or 'histogram', or calibrate in one process"
        )


def share_observations(model: nn.Module, observers: Mapping[str, TensorQuantizer], data: Data) -> None:
    """Let every process hold what all of them observed, exactly as if one had read all batches; one collective.

    Nothing happens where this process is the only one, or has read nothing since the last time.

    Raises:
        CalibrationError: another process failed or is gone, holds another model, or none had a batch.
    """
    team = data.team
    if team is None or not data.is_unmerged:
        return
    own = {
        path: {name: value.cpu() for name, value in found.calibrator.state().items()}
        for path, found in observers.items()
        if found.calibrator is not None
    }
    message = {"model": checksum(model), "seen": own, "members": noted_members(model), "read": data.summary()}
    shares = team.exchange("what was observed", message, is_last=not data.keeps_samples)
    unlike = [rank for rank, one in enumerate(shares) if one["model"] != shares[0]["model"]]
    if unlike or any(one["seen"].keys() != own.keys() for one in shares):
        named = f"rank {unlike[0]} has other weights than rank 0" if unlike else "their quantizers differ"
        raise CalibrationError(
            f"the processes do not calibrate the same model ({named}): load the same weights, or set the same seed, "
            "and prepare by the same recipe in all of them"
        )
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)
    for path, quantizer in observers.items():
        calibrator = quantizer.calibrator
        if calibrator is None:
            continue
        calibrator.reset()
        for one in shares:
            state = {name: value.to(device) for name, value in one["seen"][path].items()}
            calibrator.merge(type(calibrator).from_state(state))
    merge_members(model, [one["members"] for one in shares])
    data.merge([one["read"] for one in shares])


def fit_observed(observers: Mapping[str, TensorQuantizer], options: Mapping[str, Any], progress: bool = False) -> None:
    """Fit all ranges, or none: a range is stored when every one was found.

    Raises:
        CalibrationError: no quantizer has seen data, or a calibrator cannot fit with these options.
    """
    found: dict[str, tuple[Tensor, ...]] = {}
    for path, quantizer in track(list(observers.items()), "Fitting ranges", progress):
        try:
            bounds = quantizer.compute_calib_range(**options)
        except TypeError as error:
            raise CalibrationError(
                f"quantizer {path!r}: {type(quantizer.calibrator).__name__} cannot fit with {dict(options)}: {error}"
            ) from error
        if bounds is not None:
            found[path] = bounds
    if observers and not found:
        raise CalibrationError(
            "no quantizer has seen data: run fxq.calibrate(prepared, batches) first; forward=, if you pass it, must "
            "call the model that it is given"
        )
    for path, bounds in found.items():
        store_range(observers[path], bounds)


def store_range(quantizer: TensorQuantizer, bounds: Sequence[Tensor]) -> None:
    """Store (amax,) or (low, high) as the range of ``quantizer``, which goes on tracking if it did."""
    is_tracking = quantizer.is_tracking
    if len(bounds) == 1:
        quantizer.amax = bounds[0]
    else:
        quantizer.range = (bounds[0], bounds[1])
    if is_tracking:
        quantizer.enable_tracking()


def ranged(quantizer: TensorQuantizer, low: Tensor, high: Tensor) -> TensorQuantizer:
    """Return a copy of ``quantizer`` with another range."""
    copied = deep_copy(quantizer, {id(quantizer.calibrator): None})  # without what was observed: that takes time
    copied.range = low, torch.maximum(low, high)
    return copied


def empty_ranges(observers: Mapping[str, TensorQuantizer]) -> dict[str, str]:
    """Return, by path, the quantizers whose range says nothing of the tensor, and why: data without variety."""
    found = {}
    for path, quantizer in observers.items():
        if not quantizer.has_range:
            continue
        if bool(quantizer.is_zero.all()):
            largest = max(float(bound.abs().max()) for bound in quantizer.range)
            found[path] = "a range of zeros" if not largest else f"up to {largest:.2g}, which counts as 0"
        elif (value := _only_value(quantizer)) is not None:
            found[path] = f"always {value:.4g}"
    return found


def _only_value(quantizer: TensorQuantizer) -> float | None:
    """Return the one value that the calibrator saw, None where it saw several or does not tell."""
    state = quantizer.calibrator.state() if quantizer.calibrator is not None else {}
    low, high = state.get("low"), state.get("high")
    if low is None or high is None or not low.numel() or low.shape != high.shape:
        return None
    first = low.flatten()[0]
    return float(first) if bool((low == first).all() and (high == first).all()) else None
