"""A weighted layer as a product of matrices: ``y[n, g, o] = sum_k x[n, g, k] * w[g, o, k]``.

A linear layer has one group; a convolution becomes one by taking the patches that its kernel sees (im2col), a sample
of them: n counts positions, g groups, o output channels of a group, k the inputs of one output (channel-major, then
the kernel). A depthwise convolution has a group for each channel.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SHARE_OF_EXTREMES = 4


@dataclass(frozen=True)
class Sampled:
    """Some of a layer's inputs, which stand for all of them.

    Args:
        inputs: (positions, groups, inputs of an output).
        counts: how many positions each stands for, (positions,).
    """

    inputs: Tensor
    counts: Tensor


@dataclass(frozen=True)
class LayerMatrix:
    """One convolution or linear layer.

    Args:
        layer: nn.Linear or nn.ConvNd; a quantized one is both.
        groups: how many products it is made of.
    """

    layer: Any
    groups: int

    @classmethod
    def of(cls, layer: nn.Module) -> "LayerMatrix | None":
        """Return the matrix form of ``layer``; None where it has none (a transposed convolution)."""
        if isinstance(layer, nn.Linear):
            return cls(layer, 1)
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return cls(layer, layer.groups)
        return None

    @classmethod
    def of_channels(cls, value: Tensor, dims: int) -> "LayerMatrix":
        """Return a depthwise convolution that changes nothing, of ``value``, whose last ``dims`` sizes are of space."""
        convolution, channels = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1], value.shape[-1 - dims]
        layer = convolution(channels, channels, 1, groups=channels, bias=False, device=value.device, dtype=value.dtype)
        nn.init.ones_(layer.weight)
        return cls(layer, channels)

    @property
    def channels(self) -> int:
        """How many channels the layer reads."""
        return self.groups * int(self.layer.weight.shape[1])

    @property
    def is_depthwise(self) -> bool:
        """Does each output channel read one input channel?"""
        return self.groups > 1 and self.layer.weight.shape[1] == 1

    @property
    def is_padded(self) -> bool:
        """Does the layer see zeros beside its input?"""
        padding = getattr(self.layer, "padding", 0)
        sizes = padding if isinstance(padding, tuple) else (padding,)
        return any(size not in (0, "valid") for size in sizes)

    @property
    def channel_axis(self) -> int:
        """The dimension of what the layer reads that counts channels, from the end."""
        return -1 if isinstance(self.layer, nn.Linear) else 1 - int(self.layer.weight.dim())

    def weight(self, weight: Tensor) -> Tensor:
        """Return a weight of the layer's shape as (groups, outputs of a group, inputs of an output)."""
        return weight.detach().reshape(self.groups, weight.shape[0] // self.groups, -1)

    def scale_inputs(self, weight: Tensor, factor_c: Tensor) -> Tensor:
        """Return ``weight`` times a factor for each input channel."""
        per_group = weight.shape[1]
        by_row = factor_c.reshape(self.groups, 1, per_group).expand(-1, weight.shape[0] // self.groups, -1)
        factor = by_row.reshape(weight.shape[0], per_group, *[1] * (weight.dim() - 2))
        return weight.detach() * factor.to(weight.dtype)

    def response(self, value_c: Tensor) -> Tensor:
        """Return what a value for each input channel, the same everywhere, adds to each output: (outputs,), float64.

        That holds where nothing is padded.
        """
        weight = self.weight(self.layer.weight).double()
        per_group = self.layer.weight.shape[1]
        by_input = value_c.double().reshape(self.groups, per_group, 1).expand(-1, -1, weight.shape[2] // per_group)
        return torch.einsum("gok,gk->go", weight, by_input.flatten(1)).flatten()

    def outputs(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return (positions, groups, outputs) for inputs as :meth:`sample` gives them; no bias.

        Args:
            inputs: (positions, groups, inputs of an output).
            weight: in the layer's shape.
        """
        return torch.einsum("ngk,gok->ngo", inputs, self.weight(weight))

    def sample(self, values: list[Tensor], count: int, seed: int = 0) -> Tensor:
        """Return the inputs of ``count`` positions, drawn evenly from all batches: (positions, groups, inputs).

        Args:
            values: what the layer reads, a tensor for each batch.
            count: how many positions; fewer where there are fewer.
            seed: the same positions for the same seed and shapes, so that two streams can be compared.
        """
        generator = torch.Generator().manual_seed(seed)
        sizes = [self._positions(value) for value in values]
        shares = [max(1, round(count * size / sum(sizes))) for size in sizes]
        drawn = []
        for value, size, share in zip(values, sizes, shares, strict=True):
            chosen = torch.arange(size) if share >= size else torch.randint(size, (share,), generator=generator)
            drawn.append(self._inputs_at(value.detach(), chosen.to(value.device)))
        return torch.cat(drawn)

    def sample_with_extremes(self, values: list[Tensor], count: int, seed: int = 0) -> Sampled:
        """Return the inputs of ``count`` positions: one in four has the largest values, the others are drawn evenly.

        Few values lie at the ends of a range, and they decide what a narrower one would cost: an even draw would miss
        them more often than not. ``values``, ``count`` and ``seed`` as in :meth:`sample`.
        """
        reaches = [self._reaches(value.detach()) for value in values]
        reach_n = torch.cat(reaches)  # n: all positions
        total, most = len(reach_n), count // _SHARE_OF_EXTREMES
        if total <= count:
            chosen, counts = torch.arange(total, device=reach_n.device), reach_n.new_ones(total)
        else:
            generator = torch.Generator().manual_seed(seed)
            largest = reach_n.topk(most).indices
            others = torch.ones_like(reach_n, dtype=torch.bool).index_fill(0, largest, False).nonzero()[:, 0]
            drawn = others[torch.randint(len(others), (count - most,), generator=generator).to(others.device)]
            chosen = torch.cat([largest, drawn])
            counts = reach_n.new_ones(count)
            counts[most:] = (total - most) / (count - most)
        inputs, order, start = [], [], 0
        for value, reach in zip(values, reaches, strict=True):
            here = ((chosen >= start) & (chosen < start + len(reach))).nonzero()[:, 0]
            inputs.append(self._inputs_at(value.detach(), chosen[here] - start))
            order.append(here)
            start += len(reach)
        return Sampled(torch.cat(inputs), counts[torch.cat(order)])

    def _reaches(self, value: Tensor) -> Tensor:
        """Return the largest magnitude that each position sees: (positions,)."""
        if isinstance(self.layer, nn.Linear):
            return _largest(value, -1).flatten()
        layer = self.layer
        value = value if value.dim() == layer.weight.dim() else value.unsqueeze(0)
        largest = self._padded(_largest(value, 1).unsqueeze(1))
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(layer.kernel_size) - 1]
        return pool(largest, layer.kernel_size, layer.stride, 0, layer.dilation).flatten()

    def _positions(self, value: Tensor) -> int:
        if isinstance(self.layer, nn.Linear):
            return value.numel() // value.shape[-1]
        batch = value.shape[0] if value.dim() == self.layer.weight.dim() else 1
        return batch * _product(self._output_sizes(value))

    def _inputs_at(self, value: Tensor, chosen: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return value.reshape(-1, value.shape[-1])[chosen].unsqueeze(1)
        layer = self.layer
        value = value if value.dim() == layer.weight.dim() else value.unsqueeze(0)
        sizes = self._output_sizes(value)
        starts = []
        for size, stride in zip(reversed(sizes), reversed(layer.stride), strict=True):
            starts.append((chosen % size) * stride)
            chosen = chosen // size
        dims = len(sizes)
        index, is_padding = [chosen.reshape(-1, *[1] * dims)], torch.zeros((), dtype=torch.bool, device=value.device)
        for dim, start in enumerate(reversed(starts)):
            taps = torch.arange(layer.kernel_size[dim], device=value.device) * layer.dilation[dim]
            shape = [1] * (dims + 1)
            shape[dim + 1] = -1
            places = self._places(dim, value)[start.reshape(-1, *[1] * dims) + taps.reshape(shape)]
            is_padding = is_padding | (places < 0)
            index.append(places)
        patches = value.movedim(1, -1)[tuple(index)].masked_fill(is_padding.unsqueeze(-1), 0)
        patches = patches.movedim(-1, 1)  # (positions, channels, *kernel)
        return patches.reshape(len(patches), self.groups, -1)

    def _places(self, dim: int, value: Tensor) -> Tensor:
        """Return where along a dimension of space the padded tensor has its values from, -1 for a zero: (places,).

        A copy of the whole tensor with its padding would cost more than all that is drawn from it.
        """
        layer = self.layer
        dims = len(layer.kernel_size)
        pads = layer._reversed_padding_repeated_twice[2 * (dims - 1 - dim) :][:2]
        places = torch.arange(value.shape[dim - dims], device=value.device)
        if not any(pads):
            return places
        if layer.padding_mode == "zeros":
            return F.pad(places, pads, value=-1)
        return F.pad(places.double().reshape(1, 1, -1), pads, mode=layer.padding_mode).flatten().long()

    def _output_sizes(self, value: Tensor) -> list[int]:
        layer = self.layer
        pads = layer._reversed_padding_repeated_twice
        dims = len(layer.kernel_size)
        sizes = []
        for dim, size in enumerate(value.shape[-dims:]):
            place = 2 * (dims - 1 - dim)
            reach = layer.dilation[dim] * (layer.kernel_size[dim] - 1) + 1
            sizes.append((size + pads[place] + pads[place + 1] - reach) // layer.stride[dim] + 1)
        return sizes

    def _padded(self, value: Tensor) -> Tensor:
        layer = self.layer
        pads = layer._reversed_padding_repeated_twice
        if not any(pads):
            return value
        return F.pad(value, pads, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)


def _largest(value: Tensor, dim: int) -> Tensor:
    """Return the largest magnitude along ``dim``, in float32; without a copy of ``value``, which is large."""
    return torch.maximum(value.amax(dim), value.amin(dim).neg()).float()


def _product(sizes: list[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
