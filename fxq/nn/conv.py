"""Quantized convolutions and transposed convolutions, 1d to 3d; every padding mode and "same" padding included."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fxq.nn.functional import layer_function, layer_padding
from fxq.nn.quantized_layer import WeightQuantized
from fxq.quant import descriptor


class _QuantConv(WeightQuantized):
    kernel_size: tuple[int, ...]

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of the quantized input and weight; shapes as in torch.nn."""
        # The quantizer comes before the padding: what pads is on the grid already.
        return self._conv_forward(self._quantized("input", input), self.quantized_weight(), self.bias)  # type: ignore[no-any-return, operator]

    def padding_before(self) -> dict[str, Any] | None:
        """See the base; the function pads with zeros itself."""
        return layer_padding(self)

    def as_function(self) -> tuple[Callable[..., Tensor], dict[str, Any]]:
        """Return torch's convolution and its options."""
        return layer_function(self)


class _QuantConvTranspose(WeightQuantized):
    kernel_size: tuple[int, ...]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the transposed convolution of the quantized input and weight; arguments as in torch.nn."""
        inputs = self._quantized("input", input)
        function, options = layer_function(self, inputs, output_size)
        return function(inputs, self.quantized_weight(), self.bias, **options)

    def as_function(self) -> tuple[Callable[..., Tensor], dict[str, Any]]:
        """Return torch's transposed convolution and its options, for a call without ``output_size``."""
        return layer_function(self)


class QuantConv1d(_QuantConv, nn.Conv1d):
    """torch.nn.Conv1d with quantized input and weight, by default one range per output channel."""

    default_quant_desc_weight = descriptor.QUANT_DESC_8BIT_CONV1D_WEIGHT_PER_CHANNEL


class QuantConv2d(_QuantConv, nn.Conv2d):
    """torch.nn.Conv2d with quantized input and weight, by default one range per output channel."""

    default_quant_desc_weight = descriptor.QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL


class QuantConv3d(_QuantConv, nn.Conv3d):
    """torch.nn.Conv3d with quantized input and weight, by default one range per output channel."""

    default_quant_desc_weight = descriptor.QUANT_DESC_8BIT_CONV3D_WEIGHT_PER_CHANNEL


# The weight is (in_channels, out_channels / groups, ...): with groups, the channels of one index share a range.
class QuantConvTranspose1d(_QuantConvTranspose, nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d with quantized input and weight, by default one range per index of dimension 1."""

    default_quant_desc_weight = descriptor.QUANT_DESC_8BIT_CONVTRANSPOSE1D_WEIGHT_PER_CHANNEL


class QuantConvTranspose2d(_QuantConvTranspose, nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d with quantized input and weight, by default one range per index of dimension 1."""

    default_quant_desc_weight = descriptor.QUANT_DESC_8BIT_CONVTRANSPOSE2D_WEIGHT_PER_CHANNEL


class QuantConvTranspose3d(_QuantConvTranspose, nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d with quantized input and weight, by default one range per index of dimension 1."""

    default_quant_desc_weight = descriptor.QUANT_DESC_8BIT_CONVTRANSPOSE3D_WEIGHT_PER_CHANNEL
