"""Quantized poolings: the input is quantized, the pooling itself is torch.nn's."""

from fxq import nn
from fxq.compat.pytorch_quantization.nn.modules.compat_module import CompatInputModule

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "QuantAdaptiveAvgPool1d",
    "QuantAdaptiveAvgPool2d",
    "QuantAdaptiveAvgPool3d",
    "QuantAvgPool1d",
    "QuantAvgPool2d",
    "QuantAvgPool3d",
    "QuantMaxPool1d",
    "QuantMaxPool2d",
    "QuantMaxPool3d",
]


class QuantMaxPool1d(CompatInputModule, nn.QuantMaxPool1d):
    """torch.nn.MaxPool1d with quantized input."""


class QuantMaxPool2d(CompatInputModule, nn.QuantMaxPool2d):
    """torch.nn.MaxPool2d with quantized input."""


class QuantMaxPool3d(CompatInputModule, nn.QuantMaxPool3d):
    """torch.nn.MaxPool3d with quantized input."""


class QuantAvgPool1d(CompatInputModule, nn.QuantAvgPool1d):
    """torch.nn.AvgPool1d with quantized input."""


class QuantAvgPool2d(CompatInputModule, nn.QuantAvgPool2d):
    """torch.nn.AvgPool2d with quantized input."""


class QuantAvgPool3d(CompatInputModule, nn.QuantAvgPool3d):
    """torch.nn.AvgPool3d with quantized input."""


class QuantAdaptiveAvgPool1d(CompatInputModule, nn.QuantAdaptiveAvgPool1d):
    """torch.nn.AdaptiveAvgPool1d with quantized input."""


class QuantAdaptiveAvgPool2d(CompatInputModule, nn.QuantAdaptiveAvgPool2d):
    """torch.nn.AdaptiveAvgPool2d with quantized input."""


class QuantAdaptiveAvgPool3d(CompatInputModule, nn.QuantAdaptiveAvgPool3d):
    """torch.nn.AdaptiveAvgPool3d with quantized input."""


MaxPool1d = QuantMaxPool1d
MaxPool2d = QuantMaxPool2d
MaxPool3d = QuantMaxPool3d
AvgPool1d = QuantAvgPool1d
AvgPool2d = QuantAvgPool2d
AvgPool3d = QuantAvgPool3d
AdaptiveAvgPool1d = QuantAdaptiveAvgPool1d
AdaptiveAvgPool2d = QuantAdaptiveAvgPool2d
AdaptiveAvgPool3d = QuantAdaptiveAvgPool3d
