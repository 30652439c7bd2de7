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
from collections.abc import Callable, Sequence
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
_MOST_WALKS = 16  # through both models, for layers that are called several times
_ENOUGH = 2**13  # values of a channel: a mean of more is no better, since samples differ more than positions


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
        calls: dict[str, list[Node]] = {}
        for node in rw.nodes(is_weighted):
            calls.setdefault(str(node.target), []).append(node)
        biases = [rw.module(nodes[0]).bias for nodes in calls.values()]
        shared = Counter(id(bias) for bias in biases if bias is not None)
        walks = 0
        chosen: list[Node] = []  # called once: one walk corrects them all
        for nodes in calls.values():
            reason = _why_not(rw, nodes, shared)
            if reason is None and len(nodes) > 1 and walks == _MOST_WALKS:
                reason = f"{walks} layers that are called several times have cost a walk each, which is enough"
            if reason is not None:
                for node in nodes:
                    rw.skip(node, reason)
            elif len(nodes) == 1:
                chosen += nodes
            else:
                self._correct_each(rw, chosen)
                self._correct_all_calls(rw, nodes)
                chosen, walks = [], walks + 1
        self._correct_each(rw, chosen)

    def _correct_each(self, rw: Rewriter, nodes: list[Node]) -> None:
        for node, (in_float, quantized) in rw.run_both(nodes):
            axis = _channel_axis(rw.module(node))
            float_values, quantized_values = _thinned(in_float, axis), _thinned(quantized, axis)
            self._correct(rw, node, _Seen(float_values, quantized_values, axis, self._rectifier(rw, [node])))
            del in_float, quantized, float_values, quantized_values  # or the walk could not reuse their memory

    def _correct_all_calls(self, rw: Rewriter, nodes: list[Node]) -> None:
        axis = _channel_axis(rw.module(nodes[0]))
        pairs = [
            tuple(_as_positions(_thinned(values, axis, _ENOUGH // len(nodes)), axis) for values in both)
            for _, both in rw.run_both(nodes)
        ]
        float_values, quantized_values = (_joined(calls) for calls in zip(*pairs, strict=True))
        self._correct(rw, nodes[0], _Seen(float_values, quantized_values, -1, self._rectifier(rw, nodes)))

    def _rectifier(self, rw: Rewriter, nodes: list[Node]) -> Rectifier | None:
        return _rectifier(rw, nodes) if self.behind_rectifier else None

    def _correct(self, rw: Rewriter, node: Node, seen: "_Seen") -> None:
        layer = rw.module(node)
        shift_c = seen.shift()  # c: output channels
        if self.only_certain:
            shift_c = shift_c * _certainty(seen.float_values, seen.quantized_values, seen.axis)
        bias_c = shift_c if layer.bias is None else layer.bias.detach().double() + shift_c
        rw.set_bias(str(node.target), bias_c.to(layer.weight.dtype), "moved by the mean error of the outputs")


@dataclass
class _Seen:
    """What a layer computes in both models: a value for each batch, with channels in dimension ``axis``."""

    float_values: list[Tensor]
    quantized_values: list[Tensor]
    axis: int
    rectifier: Rectifier | None

    def shift(self) -> Tensor:
        """Return the shift of each channel that makes the means equal: (channels,), float64."""
        if self.rectifier is not None:
            return _behind(self.rectifier, self.float_values, self.quantized_values, self.axis)
        return _mean(self.float_values, self.axis) - _mean(self.quantized_values, self.axis)


def _why_not(rw: Rewriter, nodes: list[Node], shared: Counter[int]) -> str | None:
    layer: Any = rw.module(nodes[0])
    if not isinstance(layer, WeightQuantized) or not layer.weight_quantizer.is_enabled:
        return "its weight is not quantized"
    if layer.input_quantizer is None and not all(is_quantizer(node.all_input_nodes[0]) for node in nodes):
        return "its input is not quantized"
    if "bias" in computed_tensors(layer):
        return "its bias is computed in each call, to be trained"
    return f"{shared[id(layer.bias)]} layers share its bias" if shared[id(layer.bias)] > 1 else None


def _channel_axis(layer: Any) -> int:
    """Return the output dimension that counts channels, from the end: a layer may be given one sample without batch."""
    return 1 - int(layer.weight.dim())


def _thinned(values: list[Tensor], axis: int, enough: int = _ENOUGH) -> list[Tensor]:
    """Return ``values`` without some of their positions, evenly spaced, where there are more than it takes."""
    positions = sum(value.numel() // value.shape[axis] for value in values)
    space = [dim for dim in range(1, values[0].dim()) if dim != values[0].dim() + axis]
    if positions <= enough or not space:
        return values
    # Odd: a stride of 2 behind a stride of 2 would see one of four phases.
    step = int((positions / enough) ** (1 / len(space))) // 2 * 2 + 1
    every = tuple(slice(None, None, step) if dim in space else slice(None) for dim in range(values[0].dim()))
    return [value[every].contiguous() for value in values]  # read many times


def _as_positions(values: list[Tensor], axis: int) -> list[Tensor]:
    """Return each value as (samples, positions, channels)."""
    moved = [value.movedim(axis, -1) for value in values]
    return [value.reshape(len(value) if value.dim() > 1 else 1, -1, value.shape[-1]) for value in moved]


def _joined(calls: Sequence[list[Tensor]]) -> list[Tensor]:
    """Return what all calls made of a batch as one value, where they got as many samples; else one behind the other."""
    return [
        part
        for batch in zip(*calls, strict=True)
        for part in ([torch.cat(batch, 1)] if len(set(map(len, batch))) == 1 else batch)
    ]


def _rectifier(rw: Rewriter, nodes: list[Node]) -> Rectifier | None:
    """Return the rectifier that alone reads each of ``nodes``, None if none does, or one other than another."""
    readers = [only_reader(node) for node in nodes]
    found = [rw.module(one) for one in readers if one is not None and kind(one) in ("relu", "relu6", "clip")]
    return found[0] if len(found) == len(nodes) and len(set(map(repr, found))) == 1 else None


def _behind(rectifier: Rectifier, float_values: list[Tensor], quantized_values: list[Tensor], axis: int) -> Tensor:
    """Return the shift of the quantized values that keeps the mean behind a rectifier, by Newton's method.

    A shift moves the mean by the share of values that the rectifier lets through. Where that is next to nothing, the
    channel is off, and no shift is larger than the deviation of its values.
    """
    in_float, quantized = _by_channel(float_values, axis), _by_channel(quantized_values, axis)
    wanted_c, mean_c = _row_mean(rectifier(in_float)), _row_mean(in_float)
    limit_c = (_row_mean(in_float.square()) - mean_c.square()).clamp(min=0).sqrt()
    shift_c = torch.zeros_like(wanted_c)
    for _ in range(_NEWTON_STEPS):
        shifted = quantized + shift_c.to(quantized.dtype).unsqueeze(1)
        rectified = rectifier(shifted)
        passed_c = _row_mean(shifted.eq_(rectified))
        before_c, step_c = shift_c, (wanted_c - _row_mean(rectified)) / passed_c.clamp(min=_LEAST_SHARE)
        shift_c = (before_c + step_c).clamp(-limit_c, limit_c)
        if bool(((shift_c - before_c).abs() <= _NO_STEP * limit_c).all()):
            break
    return shift_c


def _by_channel(values: list[Tensor], axis: int) -> Tensor:
    """Return all values of each channel, in float32 where they have less: (channels, positions)."""
    joined = torch.cat([value.movedim(axis, 0).reshape(value.shape[axis], -1) for value in values], 1)
    return joined.to(torch.promote_types(joined.dtype, torch.float32))


def _row_mean(by_channel: Tensor) -> Tensor:
    return by_channel.mean(1).double()


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
