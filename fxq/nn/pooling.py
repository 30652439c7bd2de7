"""Quantized poolings, 1d to 3d: the input is quantized, the pooling itself is torch.nn's."""

from torch import nn

from fxq.nn.quantized_layer import OnlyInputQuantized


class QuantMaxPool1d(OnlyInputQuantized, nn.MaxPool1d):
    """torch.nn.MaxPool1d with quantized input."""


class QuantMaxPool2d(OnlyInputQuantized, nn.MaxPool2d):
    """torch.nn.MaxPool2d with quantized input."""


class QuantMaxPool3d(OnlyInputQuantized, nn.MaxPool3d):
    """torch.nn.MaxPool3d with quantized input."""


class QuantAvgPool1d(OnlyInputQuantized, nn.AvgPool1d):
    """torch.nn.AvgPool1d with quantized input."""


class QuantAvgPool2d(OnlyInputQuantized, nn.AvgPool2d):
    """torch.nn.AvgPool2d with quantized input."""


class QuantAvgPool3d(OnlyInputQuantized, nn.AvgPool3d):
    """torch.nn.AvgPool3d with quantized input."""


class QuantAdaptiveAvgPool1d(OnlyInputQuantized, nn.AdaptiveAvgPool1d):
    """torch.nn.AdaptiveAvgPool1d with quantized input."""


class QuantAdaptiveAvgPool2d(OnlyInputQuantized, nn.AdaptiveAvgPool2d):
    """torch.nn.AdaptiveAvgPool2d with quantized input."""


class QuantAdaptiveAvgPool3d(OnlyInputQuantized, nn.AdaptiveAvgPool3d):
    """torch.nn.AdaptiveAvgPool3d with quantized input."""
