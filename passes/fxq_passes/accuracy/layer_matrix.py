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

    def weight(self, weight: Tensor) -> Tensor:
        """Return a weight of the layer's shape as (groups, outputs of a group, inputs of an output)."""
        return weight.detach().reshape(self.groups, weight.shape[0] // self.groups, -1)

    def scale_inputs(self, weight: Tensor, factor_c: Tensor) -> Tensor:
        """Return ``weight`` times a factor for each input channel."""
        per_group = weight.shape[1]
        by_row = factor_c.reshape(self.groups, 1, per_group).expand(-1, weight.shape[0] // self.groups, -1)
        factor = by_row.reshape(weight.shape[0], per_group, *[1] * (weight.dim() - 2))
        return weight.detach() * factor.to(weight.dtype)

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
        padded = self._padded(value).movedim(1, -1)  # (batch, *space, channels)
        starts = []
        for size, stride in zip(reversed(sizes), reversed(layer.stride), strict=True):
            starts.append((chosen % size) * stride)
            chosen = chosen // size
        dims = len(sizes)
        index = [chosen.reshape(-1, *[1] * dims)]
        for dim, start in enumerate(reversed(starts)):
            taps = torch.arange(layer.kernel_size[dim], device=value.device) * layer.dilation[dim]
            shape = [1] * (dims + 1)
            shape[dim + 1] = -1
            index.append(start.reshape(-1, *[1] * dims) + taps.reshape(shape))
        patches = padded[tuple(index)].movedim(-1, 1)  # (positions, channels, *kernel)
        return patches.reshape(len(patches), self.groups, -1)

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


def _product(sizes: list[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
