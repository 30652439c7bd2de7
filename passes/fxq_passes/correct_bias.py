"""Rounding moves the mean of a layer's outputs; its bias moves it back.

``b += mean(float pre-activation) - mean(quantized pre-activation)``, for each output channel, over all samples and
positions. Layer by layer in execution order: each layer is corrected for the inputs that the corrected layers before
it give, so that what it corrects is its own error and what they could not.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 (empirical bias correction).
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxq import ANY, Pass, Rewriter, Stage, register_pass
from fxq.graph import is_quantizer, is_weighted
from fxq.nn import WeightQuantized


@register_pass("correct_bias")
@dataclass(frozen=True)
class CorrectBias(Pass):
    """Shift the bias of each quantized layer by the mean error of its outputs, layer by layer."""

    stage = Stage.CALIBRATED
    tolerance = ANY
    improves = True

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
        for node, (float_values, quantized_values) in rw.run_both(chosen):
            layer = rw.module(node)
            shift_c = _mean_error(float_values, quantized_values, _channel_axis(layer))  # c: output channels
            bias_c = shift_c if layer.bias is None else layer.bias.detach().double() + shift_c
            rw.set_bias(str(node.target), bias_c.to(layer.weight.dtype), "moved by the mean error of the outputs")


def _why_not(node: Node, layer: Any, calls: int, sharing: int) -> str | None:
    if not isinstance(layer, WeightQuantized) or not layer.weight_quantizer.is_enabled:
        return "its weight is not quantized"
    if layer.input_quantizer is None and not is_quantizer(node.all_input_nodes[0]):
        return "its input is not quantized"
    if calls > 1:
        return f"{node.target!r} is called {calls} times, with one bias for all"
    return f"{sharing} layers share its bias" if sharing > 1 else None


def _channel_axis(layer: Any) -> int:
    """Return the output dimension that counts channels, from the end: a layer may be given one sample without batch."""
    return 1 - int(layer.weight.dim())


def _mean_error(float_values: list[Tensor], quantized_values: list[Tensor], axis: int) -> Tensor:
    """Return the mean of float minus quantized, shape (channels,), float64; batches may differ in size."""
    channels = float_values[0].shape[axis]
    total_c, count = torch.zeros(channels, dtype=torch.float64, device=float_values[0].device), 0
    for expected, found in zip(float_values, quantized_values, strict=True):
        error = (expected - found).float().movedim(axis, 0).flatten(1)
        total_c += error.mean(1).double() * error.shape[1]
        count += error.shape[1]
    return total_c / count
