"""The search for a factor for each channel of a tensor, so that quantized layers that read it err least.

``W x = (W diag(s)) (x / s)``. Candidates are ``s_c = amax_c^p / wmax_c^r``, normalized to a geometric mean of 1: with
p = 1, r = 0 all channels of the tensor get one range; with p = r = 1/2 it is SmoothQuant's. What counts is the error
of the outputs on samples, without its mean for each output channel, which a bias makes up for.

Sources: Nagel et al. 2019, arXiv:1906.04721 (cross-layer equalization); Xiao et al. 2022, arXiv:2211.10438
(SmoothQuant). The search over both exponents by output error is ours.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxq import TensorQuantizer
from fxq.graph.stored import fit_quantizer
from fxq_passes.accuracy.layer_matrix import LayerMatrix

_SMALLEST_SHARE = 1e-3  # of the largest channel: those below are dead, and must not be blown up
_MOST_WORK = 2e8  # multiplications of one candidate


@dataclass
class Reader:
    """A layer that reads the tensor, with samples of what it reads.

    Args:
        matrix: the layer.
        inputs: (positions, groups, inputs of an output).
    """

    matrix: LayerMatrix
    inputs: Tensor

    def __post_init__(self) -> None:
        self.inputs, self.weight = in_full(self.inputs), in_full(self.matrix.layer.weight.detach())
        work = self.matrix.layer.weight.numel() * len(self.inputs)
        if work > _MOST_WORK:
            self.inputs = self.inputs[:: int(work / _MOST_WORK) + 1]
        self.wanted = self.matrix.outputs(self.inputs, self.weight)

    def weight_reach(self) -> Tensor:
        """Return, for each input channel, the largest weight in terms of its output channel's largest: (channels,)."""
        weight = self.matrix.weight(self.weight).abs()  # (groups, outputs, inputs)
        weight = weight / weight.amax(2, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        per_group = self.matrix.layer.weight.shape[1]
        return weight.amax(1).reshape(self.matrix.groups, per_group, -1).amax(2).flatten()

    def error(self, quantizer: TensorQuantizer | None, scale_c: Tensor) -> Tensor:
        """Return the squared error of the outputs in each half of the samples, over their variance: (2,)."""
        layer = self.matrix.layer
        per_group = layer.weight.shape[1]
        kernel = self.inputs.shape[2] // per_group
        scale = scale_c.reshape(self.matrix.groups, per_group, 1).expand(-1, -1, kernel).flatten(1)
        inputs = self.inputs / scale
        weight = quantized_weight(layer, self.matrix.scale_inputs(self.weight, scale_c))
        found = self.matrix.outputs(inputs if quantizer is None else quantizer(inputs), weight)
        errors = found - self.wanted
        errors = errors - errors.mean(0)
        power = (self.wanted - self.wanted.mean(0)).square().sum() + torch.finfo(errors.dtype).tiny
        return torch.stack([half.square().sum() for half in errors.tensor_split(2)]) / power


def in_full(value: Tensor) -> Tensor:
    """Return ``value`` in float32 where it has less: sums of squares overflow in half precision."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def quantized_weight(layer: Any, weight: Tensor) -> Tensor:
    """Return ``weight`` as the quantizer of ``layer`` would leave it, fitted to it; the layer is unchanged."""
    quantizer = getattr(layer, "weight_quantizer", None)
    if quantizer is None or not quantizer.is_enabled:
        return weight
    fitted = copy.deepcopy(quantizer)
    fit_quantizer("", weight, fitted)
    quantized: Tensor = fitted(weight)
    return quantized


def ranged(quantizer: TensorQuantizer, low: Tensor, high: Tensor) -> TensorQuantizer:
    """Return a copy of ``quantizer`` with another range."""
    copied = copy.deepcopy(quantizer)
    copied.range = low, torch.maximum(low, high)
    return copied


def amplitude(low_c: Tensor, high_c: Tensor) -> Tensor:
    """Return the largest magnitude of each channel; a dead one counts as a thousandth of the largest."""
    amax_c = torch.maximum(low_c.abs(), high_c.abs())
    return amax_c.clamp(min=max(float(amax_c.max()) * _SMALLEST_SHARE, torch.finfo(amax_c.dtype).tiny))


def normalized(scale_c: Tensor) -> Tensor:
    """Return ``scale_c`` over its geometric mean."""
    return scale_c / scale_c.log().mean().exp()


def best_scale(
    readers: Sequence[Reader],
    low_c: Tensor,
    high_c: Tensor,
    quantizer: TensorQuantizer | None,
    exponents: Sequence[tuple[float, float]],
) -> tuple[Tensor, float]:
    """Return the best factor for each channel, and its error in terms of that without one.

    Args:
        readers: all layers that read the tensor.
        low_c, high_c: the extremes of each channel, (channels,).
        quantizer: of the tensor; None where it stays in float.
        exponents: pairs (p, r) to try.

    Returns:
        The factors (channels,), and the worse of the ratios on two halves of the samples: below 1 where both gain.
    """
    amax_c = amplitude(low_c, high_c)
    reach_c = torch.stack([reader.weight_reach() for reader in readers]).amax(0)
    reach_c = reach_c.clamp(min=max(float(reach_c.max()) * _SMALLEST_SHARE, torch.finfo(reach_c.dtype).tiny))
    ones = torch.ones_like(amax_c)
    start = _total_error(readers, low_c, high_c, quantizer, ones)
    best, least = ones, 1.0
    for p, r in exponents:
        scale_c = normalized(amax_c.pow(p) / reach_c.pow(r))
        ratio = float((_total_error(readers, low_c, high_c, quantizer, scale_c) / start).max())
        if ratio < least:
            best, least = scale_c, ratio
    return best, least


def _total_error(
    readers: Sequence[Reader], low_c: Tensor, high_c: Tensor, quantizer: TensorQuantizer | None, scale_c: Tensor
) -> Tensor:
    scaled = None if quantizer is None else ranged(quantizer, (low_c / scale_c).min(), (high_c / scale_c).max())
    total = torch.stack([reader.error(scaled, scale_c) for reader in readers]).sum(0)
    return total.clamp(min=torch.finfo(total.dtype).tiny)
