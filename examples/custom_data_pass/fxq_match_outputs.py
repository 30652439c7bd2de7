"""A pass with data of one's own: each output channel is scaled and shifted to fit what the float layer computes.

Rounding the weights of a channel to a few bits changes its gain as well as its mean. The line of least squares through
(quantized, float) pre-activations gives both back: ``float ~ gain * quantized + shift``. Scaling the weights of a
channel scales its range alike, so their codes stay what they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import fxq
from fxq.graph import is_weighted, kind
from fxq.nn import WeightQuantized


@fxq.register_pass("match_outputs")
@dataclass(frozen=True)
class MatchOutputs(fxq.Pass):
    """Fit gain and bias of each quantized linear layer and convolution to the float model, by least squares.

    Args:
        most_gain: leave channels whose gain would change by more than this factor: what they compute is noise.
    """

    stage = fxq.Stage.CALIBRATED
    tolerance = fxq.ANY
    improves = True
    keeps_ranges = True
    most_gain: float = 2.0

    def run(self, rw: fxq.Rewriter) -> None:
        """Fit layer by layer in execution order; each sees the inputs that the fitted layers before it give."""
        chosen = []
        calls = [str(node.target) for node in rw.nodes(is_weighted)]
        for node in rw.nodes(is_weighted):
            if not isinstance(rw.module(node), WeightQuantized) or kind(node) == "conv_transpose":
                rw.skip(node, "no quantized weight with output channels in dimension 0")
            elif calls.count(str(node.target)) > 1:
                rw.skip(node, "called more than once")
            else:
                chosen.append(node)
        for node, (float_values, quantized_values) in rw.run_both(chosen):
            layer, path = rw.module(node), str(node.target)
            axis = 1 - layer.weight.dim()  # output channels, from the end
            wanted, found = _by_channel(float_values, axis), _by_channel(quantized_values, axis)
            gain_c = _slopes(found, wanted)
            gain_c = torch.where((gain_c > self.most_gain) | (gain_c < 1 / self.most_gain), 1.0, gain_c)
            shift_c = wanted.mean(1) - gain_c * found.mean(1)
            bias_c = shift_c if layer.bias is None else gain_c * layer.bias.detach() + shift_c
            scaled = layer.weight.detach() * gain_c.reshape(-1, *[1] * (layer.weight.dim() - 1))
            rw.set_weight(path, scaled, "scaled to the float layer's outputs")
            rw.set_bias(path, bias_c, "moved to the float layer's outputs")


def _by_channel(values: list[Tensor], axis: int) -> Tensor:
    """Return all values of each channel, shape (channels, values); batches may differ in shape."""
    return torch.cat([value.movedim(axis, 0).flatten(1) for value in values], dim=1)


def _slopes(x: Tensor, y: Tensor) -> Tensor:
    """Return the slopes of the lines of least squares through the rows of ``x`` and ``y``, shape (channels,)."""
    centred = x - x.mean(1, keepdim=True)
    return (centred * y).sum(1) / centred.square().sum(1).clamp_min(1e-12)
