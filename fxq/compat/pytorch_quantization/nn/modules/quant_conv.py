"""Quantized convolutions and transposed convolutions."""

from fxq import nn
from fxq.compat.pytorch_quantization import tensor_quant
from fxq.compat.pytorch_quantization.nn.modules.compat_module import CompatModule

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "QuantConv1d",
    "QuantConv2d",
    "QuantConv3d",
    "QuantConvTranspose1d",
    "QuantConvTranspose2d",
    "QuantConvTranspose3d",
]


class _QuantConvNd(CompatModule):
    """What the convolutions are instances of."""


class _QuantConvTransposeNd(CompatModule):
    """What the transposed convolutions are instances of."""


class QuantConv1d(_QuantConvNd, nn.QuantConv1d):
    """torch.nn.Conv1d with quantized input and weight, by default one range per output channel."""

    default_quant_desc_weight = tensor_quant.QUANT_DESC_8BIT_CONV1D_WEIGHT_PER_CHANNEL


class QuantConv2d(_QuantConvNd, nn.QuantConv2d):
    """torch.nn.Conv2d with quantized input and weight, by default one range per output channel."""

    default_quant_desc_weight = tensor_quant.QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL


class QuantConv3d(_QuantConvNd, nn.QuantConv3d):
    """torch.nn.Conv3d with quantized input and weight, by default one range per output channel."""

    default_quant_desc_weight = tensor_quant.QUANT_DESC_8BIT_CONV3D_WEIGHT_PER_CHANNEL


class QuantConvTranspose1d(_QuantConvTransposeNd, nn.QuantConvTranspose1d):
    """torch.nn.ConvTranspose1d with quantized input and weight, by default one range per index of dimension 1."""

    default_quant_desc_weight = tensor_quant.QUANT_DESC_8BIT_CONVTRANSPOSE1D_WEIGHT_PER_CHANNEL


class QuantConvTranspose2d(_QuantConvTransposeNd, nn.QuantConvTranspose2d):
    """torch.nn.ConvTranspose2d with quantized input and weight, by default one range per index of dimension 1."""

    default_quant_desc_weight = tensor_quant.QUANT_DESC_8BIT_CONVTRANSPOSE2D_WEIGHT_PER_CHANNEL


class QuantConvTranspose3d(_QuantConvTransposeNd, nn.QuantConvTranspose3d):
    """torch.nn.ConvTranspose3d with quantized input and weight, by default one range per index of dimension 1."""

    default_quant_desc_weight = tensor_quant.QUANT_DESC_8BIT_CONVTRANSPOSE3D_WEIGHT_PER_CHANNEL


_ConvNd = _QuantConvNd
Conv1d = QuantConv1d
Conv2d = QuantConv2d
Conv3d = QuantConv3d
ConvTranspose1d = QuantConvTranspose1d
ConvTranspose2d = QuantConvTranspose2d
ConvTranspose3d = QuantConvTranspose3d
