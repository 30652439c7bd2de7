"""Quantized instance normalisation: the input is quantized, statistics and affine stay float."""

from fxq import nn
from fxq.compat.pytorch_quantization.nn.modules.compat_module import CompatInputModule

__all__ = ["QuantInstanceNorm1d", "QuantInstanceNorm2d", "QuantInstanceNorm3d"]


class QuantInstanceNorm1d(CompatInputModule, nn.QuantInstanceNorm1d):
    """torch.nn.InstanceNorm1d with quantized input."""


class QuantInstanceNorm2d(CompatInputModule, nn.QuantInstanceNorm2d):
    """torch.nn.InstanceNorm2d with quantized input."""


class QuantInstanceNorm3d(CompatInputModule, nn.QuantInstanceNorm3d):
    """torch.nn.InstanceNorm3d with quantized input."""
