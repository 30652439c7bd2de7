"""Which quantized module replaces which module of torch.nn."""

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from fxq.nn.conv import (
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
)
from fxq.nn.linear import QuantLinear
from fxq.nn.quantized_layer import WeightQuantized

# Exact types: a subclass may have a forward of its own.
QUANTIZED: Mapping[type[nn.Module], type[WeightQuantized]] = MappingProxyType(
    {
        quantized.replaced_type(): quantized
        for quantized in (
            QuantConv1d,
            QuantConv2d,
            QuantConv3d,
            QuantConvTranspose1d,
            QuantConvTranspose2d,
            QuantConvTranspose3d,
            QuantLinear,
        )
    }
)
