"""Quantized instance normalisation, 1d to 3d: the input is quantized, statistics and affine stay float."""

from torch import nn

from fxq.nn.quantized_layer import OnlyInputQuantized


class QuantInstanceNorm1d(OnlyInputQuantized, nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d with quantized input."""


class QuantInstanceNorm2d(OnlyInputQuantized, nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d with quantized input."""


class QuantInstanceNorm3d(OnlyInputQuantized, nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d with quantized input."""
