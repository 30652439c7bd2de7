"""Rounding moves the mean of a layer's outputs; its bias moves it back.

``b += mean(float pre-activation) - mean(quantized pre-activation)``, for each output channel, over all samples and
positions. Layer by layer in execution order: each layer is corrected for the inputs that the corrected layers before
it give, so that what it corrects is its own error and what they could not.

Where a rectifier follows, noise moves the mean behind it even if the mean before it is right: what falls below 0 is
cut off, what rises is not. There the shift is the one that keeps the mean behind the rectifier, which is what later
layers read. On MobileNetV2 with trained weights this is worth 3 dB.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 (empirical bias correction); the second part is ours.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxq import ANY, Pass, Rewriter, Stage, register_pass
from fxq.graph import is_quantizer, is_weighted, kind, only_reader
from fxq.nn import WeightQuantized, computed_tensors

Rectifier = Callable[[Tensor], Tensor]
_NEWTON_STEPS = 4  # at most; the mean is nearly linear in the shift: two give three digits
_NO_STEP = 1e-3  # of the deviation of the values
_LEAST_SHARE = 0.05
_ENOUGH = 2**14  # values of a channel: a mean of more is no better, since samples differ more than positions


@register_pass("correct_bias")
@dataclass(frozen=True)
class CorrectBias(Pass):
    """Shift the bias of each quantized layer by the mean error of its outputs, layer by layer.

    Args:
        behind_rectifier: keep the mean behind the ReLU, ReLU6 or clip that alone reads a layer; False keeps the mean
            before it.
        only_certain: take back only the share of a mean error that is no chance of the samples; False: all of it.
    """

    stage = Stage.CALIBRATED
    tolerance = ANY
    improves = True
    corrects = True
    keeps_ranges = True
    behind_rectifier: bool = True
    only_certain: bool = True

    def run(self, rw: Rewriter) -> None:
        """Correct the convolutions and linear layers that compute with integers, or say why not."""
        layers = rw.nodes(is_weighted)
        calls = Counter(str(node.target) for node in layers)
        shared = Counter(id(rw.module(node).bias) for node in layers if rw.module(node).bias is not None)
        chosen = []
        for node in layers:
            layer = rw.module(node)
            reason = _why_not(node, layer, calls[str(node.target)], shared[id(layer.bias)])
            if reason is None:
                chosen.append(node)
            else:
                rw.skip(node, reason)
        for node, (in_float, quantized) in rw.run_both(chosen):
            layer = rw.module(node)
            axis, rectifier = _channel_axis(layer), _rectifier(rw, node) if self.behind_rectifier else None
            float_values, quantized_values = _thinned(in_float, axis), _thinned(quantized, axis)
            shift_c = _mean(float_values, axis) - _mean(quantized_values, axis)  # c: output channels
            if rectifier is not None:
                shift_c = _behind(rectifier, float_values, quantized_values, axis)
            if self.only_certain:
                shift_c = shift_c * _certainty(float_values, quantized_values, axis)
            bias_c = shift_c if layer.bias is None else layer.bias.detach().double() + shift_c
            rw.set_bias(str(node.target), bias_c.to(layer.weight.dtype), "moved by the mean error of the outputs")


def _why_not(node: Node, layer: Any, calls: int, sharing: int) -> str | None:
    if not isinstance(layer, WeightQuantized) or not layer.weight_quantizer.is_enabled:
        return "its weight is not quantized"
    if layer.input_quantizer is None and not is_quantizer(node.all_input_nodes[0]):
        return "its input is not quantized"
    if "bias" in computed_tensors(layer):
        return "its bias is computed in each call, to be trained"
    if calls > 1:
        return f"{node.target!r} is called {calls} times, with one bias for all"
    return f"{sharing} layers share its bias" if sharing > 1 else None


def _channel_axis(layer: Any) -> int:
    """Return the output dimension that counts channels, from the end: a layer may be given one sample without batch."""
    return 1 - int(layer.weight.dim())


def _thinned(values: list[Tensor], axis: int) -> list[Tensor]:
    """Return ``values`` without some of their positions, evenly spaced, where there are more than it takes."""
    positions = sum(value.numel() // value.shape[axis] for value in values)
    space = [dim for dim in range(1, values[0].dim()) if dim != values[0].dim() + axis]
    if positions <= _ENOUGH or not space:
        return values
    # Odd: a stride of 2 behind a stride of 2 would see one of four phases.
    step = int((positions / _ENOUGH) ** (1 / len(space))) // 2 * 2 + 1
    every = tuple(slice(None, None, step) if dim in space else slice(None) for dim in range(values[0].dim()))
    return [value[every].contiguous() for value in values]  # read many times


def _rectifier(rw: Rewriter, node: Node) -> Rectifier | None:
    """Return the rectifier that alone reads ``node``, None if none does."""
    reader = only_reader(node)
    return rw.module(reader) if reader is not None and kind(reader) in ("relu", "relu6", "clip") else None


def _behind(rectifier: Rectifier, float_values: list[Tensor], quantized_values: list[Tensor], axis: int) -> Tensor:
    """Return the shift of the quantized values that keeps the mean behind a rectifier, by Newton's method.

    A shift moves the mean by the share of values that the rectifier lets through. Where that is next to nothing, the
    channel is off, and no shift is larger than the deviation of its values.
    """
    wanted_c = _mean([rectifier(value) for value in float_values], axis)
    squares_c = _mean([value.float().square() for value in float_values], axis)
    limit_c = (squares_c - _mean(float_values, axis).square()).clamp(min=0).sqrt()
    shift_c = torch.zeros_like(wanted_c)
    for _ in range(_NEWTON_STEPS):
        shifted = [value + _along(shift_c, value, axis) for value in quantized_values]
        rectified = [rectifier(value) for value in shifted]
        passed_c = _mean([value == other for value, other in zip(shifted, rectified, strict=True)], axis)
        before_c, step_c = shift_c, (wanted_c - _mean(rectified, axis)) / passed_c.clamp(min=_LEAST_SHARE)
        shift_c = (before_c + step_c).clamp(-limit_c, limit_c)
        if bool(((shift_c - before_c).abs() <= _NO_STEP * limit_c).all()):
            break
    return shift_c


def _certainty(float_values: list[Tensor], quantized_values: list[Tensor], axis: int) -> Tensor:
    """Return, for each channel, which share of the mean error is no chance of the samples: (channels,), in [0, 1].

    With m the mean error and s its standard error over samples it is ``1 - s^2 / m^2``, where that is positive: what a
    correction by m adds to the error of other samples, s^2, is not larger than what it takes away.
    """
    errors = [
        (value.float() - other.float()).movedim(axis, -1)
        for value, other in zip(float_values, quantized_values, strict=True)
    ]
    by_sample = [
        error.flatten(1, -2).mean(1) if error.dim() > 2 else error.reshape(-1, error.shape[-1]) for error in errors
    ]
    means = torch.cat(by_sample).double()  # (samples, channels)
    if len(means) < 2:
        return torch.ones_like(means[0])
    mean_c, variance_c = means.mean(0), means.var(0) / len(means)
    return (1 - variance_c / mean_c.square().clamp(min=torch.finfo(torch.float64).tiny)).clamp(min=0)


def _along(shift_c: Tensor, value: Tensor, axis: int) -> Tensor:
    return shift_c.to(value.dtype).reshape(-1, *[1] * (-1 - axis))


def _mean(values: list[Tensor], axis: int) -> Tensor:
    """Return the mean over all but ``axis``, counted from the end: (channels,), float64; batches may differ in size."""
    channels = values[0].shape[axis]
    total_c, count = torch.zeros(channels, dtype=torch.float64, device=values[0].device), 0
    for value in values:
        others = [dim for dim in range(value.dim()) if dim != value.dim() + axis]
        positions = value.numel() // channels
        total_c += (value.float().mean(others) if others else value.float()).double() * positions
        count += positions
    return total_c / count
