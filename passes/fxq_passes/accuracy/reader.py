"""Readers: layers that read a tensor, asked how much they err for a range of it or factors of its channels.

Samples are in two halves, so that what one half suggests can be judged by the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from fxq import TensorQuantizer
from fxq.graph.modules import deep_copy
from fxq.graph.stored import fit_quantizer
from fxq_passes.accuracy.layer_matrix import LayerMatrix, Sampled

FOLDS = ((0, 1), (1, 0))  # the half to learn from, and the half to judge by
_MOST_OUTPUTS = 128
_MOST_WORK = 1e8  # multiplications of one candidate on one half
_PRIOR = 0.5  # samples
_SMALLEST_POWER = 1e-6  # of the largest channel's


@dataclass
class Extremes:
    """How far each channel reaches, in each half of the samples: (2, channels) each.

    Args:
        low_hc, high_hc: the lowest and highest value.
        samples_hc: in how many samples its largest magnitude is at least half of that in all.
    """

    low_hc: Tensor
    high_hc: Tensor
    samples_hc: Tensor

    @classmethod
    def of(cls, values: list[Tensor], axis: int) -> Self:
        """Return those of a tensor, which has a value for each batch; ``axis`` counts channels."""
        low_hc, high_hc, samples_hc = zip(*(_extremes(half, axis) for half in halves(values, axis)), strict=True)
        return cls(torch.stack(low_hc), torch.stack(high_hc), torch.stack(samples_hc))

    @classmethod
    def joined(cls, several: Sequence[Self]) -> Self:
        """Return those of several tensors with the same channels."""
        low_hc = torch.stack([one.low_hc for one in several]).amin(0)
        high_hc = torch.stack([one.high_hc for one in several]).amax(0)
        return cls(low_hc, high_hc, torch.stack([one.samples_hc for one in several]).amin(0))

    def amax(self, half: int | None = None) -> Tensor:
        """Return the largest magnitude of each channel, in one half or in both: (channels,)."""
        amax_hc = torch.maximum(self.low_hc.abs(), self.high_hc.abs())
        return amax_hc.amax(0) if half is None else amax_hc[half]

    def center(self, half: int | None = None) -> Tensor:
        """Return the middle of what each channel reaches, in one half or in both: (channels,)."""
        if half is None:
            return (self.low_hc.amin(0) + self.high_hc.amax(0)) / 2
        return (self.low_hc[half] + self.high_hc[half]) / 2

    def moved(self, shift_c: Tensor) -> "Extremes":
        """Return those of the tensor less ``shift_c``."""
        return replace(self, low_hc=self.low_hc - shift_c, high_hc=self.high_hc - shift_c)

    def expected(self, half: int | None = None) -> Tensor:
        """Return how far each channel may reach in samples that were not seen: (channels,).

        The fewer samples reached that far, the more it counts how far the largest channel reaches: as half a sample.
        """
        amax_c = self.amax(half)
        samples_c = self.samples_hc.sum(0) if half is None else self.samples_hc[half]
        return (samples_c * amax_c + _PRIOR * amax_c.max()) / (samples_c + _PRIOR)


def _extremes(values: list[Tensor], axis: int) -> tuple[Tensor, Tensor, Tensor]:
    lows, highs = [], []
    for value in values:
        by_channel = in_full(value.detach()).movedim(axis, -1)
        flat = by_channel.flatten(1, -2) if by_channel.dim() > 2 else by_channel.unsqueeze(1)
        lows.append(flat.amin(1))
        highs.append(flat.amax(1))
    low_sc, high_sc = torch.cat(lows), torch.cat(highs)  # s: samples
    amax_sc = torch.maximum(low_sc.abs(), high_sc.abs())
    amax_c = amax_sc.amax(0)
    return low_sc.amin(0), high_sc.amax(0), ((amax_sc >= amax_c / 2) & (amax_c > 0)).sum(0)


class Reader:
    """A layer that reads a tensor, with samples of what it reads and the weights of some of its outputs.

    The layer stays as it is while it is asked.

    Args:
        matrix: the layer.
        values: the tensor, a value for each batch.
        count: how many positions to sample; fewer for a large layer.
        through: what the tensor goes through in float before the layer, value by value, as a function of
            (positions, groups, inputs of an output). It lets no factors through: they are taken back before it.
    """

    def __init__(
        self,
        matrix: LayerMatrix,
        values: list[Tensor],
        count: int,
        through: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.matrix, self.weight = matrix, in_full(_some_outputs(matrix))
        self.through, self._dtype = through, values[0].dtype
        most = max(8, min(count // 2, int(_MOST_WORK / self.weight.numel())))
        self._samples = [
            _in_full(matrix.sample_with_extremes(half, most)) for half in halves(values, matrix.channel_axis)
        ]
        self._wanted = [matrix.outputs(self._passed(one.inputs), self.weight) for one in self._samples]
        self._power = self._find_power()
        self._rounded: Tensor | None = None  # the weight as it is quantized, once asked

    def weight_reach(self) -> Tensor:
        """Return, for each input channel, the largest weight in terms of its output channel's largest: (channels,)."""
        weight = self.matrix.weight(in_full(self.matrix.layer.weight.detach())).abs()  # (groups, outputs, inputs)
        weight = weight / weight.amax(2, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        per_group = self.matrix.layer.weight.shape[1]
        return weight.amax(1).reshape(self.matrix.groups, per_group, -1).amax(2).flatten()

    def error(
        self, quantizer: TensorQuantizer | None, scale_c: Tensor | None, half: int, shift_c: Tensor | None = None
    ) -> float:
        """Return the squared error of the outputs on one half of the samples, over their variance on both.

        Args:
            quantizer: of the tensor; None where that stays in float.
            scale_c: factors that its weights take from each channel, (channels,); None for none.
            half: 0 or 1.
            shift_c: what is taken from each channel before, and added by a bias behind, (channels,); None for nothing.
        """
        sampled = self._samples[half]
        inputs, rounded = sampled.inputs, self._rounded_weight(scale_c if self.through is None else None)
        inputs = inputs if shift_c is None else inputs - self._by_input(shift_c, inputs)
        by_input = None if scale_c is None else self._by_input(scale_c, inputs)
        inputs = inputs if by_input is None else inputs / by_input
        inputs = inputs if quantizer is None else quantizer(inputs)
        if self.through is not None and by_input is not None:
            inputs = inputs * by_input
        found = self.matrix.outputs(self._passed(inputs), rounded)
        return float((_variance(found - self._wanted[half], sampled.counts) / self._power).sum())

    def _rounded_weight(self, scale_c: Tensor | None) -> Tensor:
        if scale_c is not None:
            return quantized_weight(self.matrix.layer, self.matrix.scale_inputs(self.weight, scale_c))
        if self._rounded is None:
            self._rounded = quantized_weight(self.matrix.layer, self.weight)
        return self._rounded

    def _by_input(self, scale_c: Tensor, inputs: Tensor) -> Tensor:
        """Return the factor of each input: (groups, inputs of an output)."""
        per_group = self.matrix.layer.weight.shape[1]
        return scale_c.reshape(self.matrix.groups, per_group, 1).expand(-1, -1, inputs.shape[2] // per_group).flatten(1)

    def _passed(self, inputs: Tensor) -> Tensor:
        return inputs if self.through is None else in_full(self.through(inputs.to(self._dtype)))

    def _find_power(self) -> Tensor:
        """Return what errors are put in terms of: the variance of all outputs, (), or of each, (groups, outputs).

        The channels of a depthwise convolution are as large as the layers around them make them: each counts alike.
        """
        wanted, counts = torch.cat(self._wanted), torch.cat([one.counts for one in self._samples])
        power = _variance(wanted, counts)
        tiny = torch.finfo(power.dtype).tiny
        if self.matrix.is_depthwise:
            return power.clamp(min=max(float(power.max()) * _SMALLEST_POWER, tiny)) * power.numel()
        return power.sum().clamp(min=tiny)


def worst_ratio(error: Callable[[tuple[int, int]], float], start: Sequence[float], most: float) -> float:
    """Return the worse of the ratios of an ``error``, given a fold, to that at the ``start``, for each of FOLDS.

    From ``most`` on it is of no interest how bad it is: then one fold may be left out.
    """
    worst = 0.0
    for fold, before in zip(FOLDS, start, strict=True):
        worst = max(worst, error(fold) / before)
        if worst >= most:
            break
    return worst


def halves(values: list[Tensor], axis: int = -1) -> tuple[list[Tensor], list[Tensor]]:
    """Return the first and the second half of the samples of all batches; a single sample makes both halves.

    Dimension 0 counts samples, unless it is ``axis``, which counts channels, from the end: then a value is one sample.
    """
    counts = [len(value) if value.dim() + axis > 0 else 1 for value in values]
    total = sum(counts)
    if total < 2:
        return values, values
    first, second, room = list[Tensor](), list[Tensor](), (total + 1) // 2
    for value, count in zip(values, counts, strict=True):
        here = min(room, count)
        room -= here
        if here == count:
            first.append(value)
        elif here == 0:
            second.append(value)
        else:
            first.append(value[:here])
            second.append(value[here:])
    return first, second


def in_full(value: Tensor) -> Tensor:
    """Return ``value`` in float32 where it has less: sums of squares overflow in half precision."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def quantized_weight(layer: Any, weight: Tensor) -> Tensor:
    """Return ``weight`` as the quantizer of ``layer`` would leave it, fitted to it; the layer is unchanged."""
    quantizer = getattr(layer, "weight_quantizer", None)
    if quantizer is None or not quantizer.is_enabled:
        return weight
    fitted = deep_copy(quantizer)
    fit_quantizer("", weight, fitted)
    quantized: Tensor = fitted(weight)
    return quantized


def _some_outputs(matrix: LayerMatrix) -> Tensor:
    """Return the weight of the layer, or of outputs drawn from it where there are many, each with a range of its own.

    All of them see the same errors of their input, so that some tell what all would.
    """
    weight: Tensor = matrix.layer.weight.detach()
    quantizer: TensorQuantizer | None = getattr(matrix.layer, "weight_quantizer", None)
    have_own_ranges = quantizer is None or not quantizer.is_enabled
    if quantizer is not None and quantizer.calibrator is not None:
        have_own_ranges |= quantizer.descriptor.axis == 0
    if matrix.groups > 1 or len(weight) <= _MOST_OUTPUTS or not have_own_ranges:
        return weight
    drawn = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))[:_MOST_OUTPUTS]
    return weight[drawn.sort().values.to(weight.device)]


def _in_full(sampled: Sampled) -> Sampled:
    return Sampled(in_full(sampled.inputs), in_full(sampled.counts))


def _variance(values: Tensor, counts: Tensor) -> Tensor:
    """Return the variance over positions, each weighted by how many it stands for: (groups, outputs)."""
    share = (counts / counts.sum()).reshape(-1, 1, 1)
    return ((values - (share * values).sum(0)).square() * share).sum(0)
