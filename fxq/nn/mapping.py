"""Which quantized module replaces which module of torch.nn."""

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from fxq.nn import conv, instancenorm, pooling, recurrent, recurrent_cells
from fxq.nn.attention import QuantMultiheadAttention
from fxq.nn.computed import plain_type
from fxq.nn.embedding import QuantEmbedding
from fxq.nn.linear import QuantLinear
from fxq.nn.quantized import Quantized

_CLASSES: tuple[type[Quantized], ...] = (
    conv.QuantConv1d,
    conv.QuantConv2d,
    conv.QuantConv3d,
    conv.QuantConvTranspose1d,
    conv.QuantConvTranspose2d,
    conv.QuantConvTranspose3d,
    QuantLinear,
    QuantEmbedding,
    QuantMultiheadAttention,
    recurrent.QuantLSTM,
    recurrent.QuantGRU,
    recurrent.QuantRNN,
    recurrent_cells.QuantLSTMCell,
    recurrent_cells.QuantGRUCell,
    recurrent_cells.QuantRNNCell,
    pooling.QuantMaxPool1d,
    pooling.QuantMaxPool2d,
    pooling.QuantMaxPool3d,
    pooling.QuantAvgPool1d,
    pooling.QuantAvgPool2d,
    pooling.QuantAvgPool3d,
    pooling.QuantAdaptiveAvgPool1d,
    pooling.QuantAdaptiveAvgPool2d,
    pooling.QuantAdaptiveAvgPool3d,
    instancenorm.QuantInstanceNorm1d,
    instancenorm.QuantInstanceNorm2d,
    instancenorm.QuantInstanceNorm3d,
)

# Exact types: a subclass may have a forward of its own.
QUANTIZED: Mapping[type[nn.Module], type[Quantized]] = MappingProxyType(
    {quantized.replaced_type(): quantized for quantized in _CLASSES}
)


def quantized_type(module: nn.Module) -> type[Quantized] | None:
    """Return the class of QUANTIZED that can replace ``module``, None where none can."""
    found = QUANTIZED.get(plain_type(module))
    return found if found is not None and found.takes(module) else None
