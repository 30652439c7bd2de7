"""Quantizers and quantized modules, each usable by hand. Short names (``Linear``) as in pytorch-quantization."""

from fxq.nn.attention import QuantMultiheadAttention
from fxq.nn.batchnorm import BATCH_NORMS, BatchNormFolded, fold_in_training
from fxq.nn.computed import computed_tensors, has_other_hooks, plain_type, store_computed
from fxq.nn.conv import (
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
)
from fxq.nn.embedding import QuantEmbedding
from fxq.nn.instancenorm import QuantInstanceNorm1d, QuantInstanceNorm2d, QuantInstanceNorm3d
from fxq.nn.linear import QuantLinear
from fxq.nn.make_calibrator import make_calibrator
from fxq.nn.mapping import QUANTIZED, quantized_type
from fxq.nn.pooling import (
    QuantAdaptiveAvgPool1d,
    QuantAdaptiveAvgPool2d,
    QuantAdaptiveAvgPool3d,
    QuantAvgPool1d,
    QuantAvgPool2d,
    QuantAvgPool3d,
    QuantMaxPool1d,
    QuantMaxPool2d,
    QuantMaxPool3d,
)
from fxq.nn.qparams import QParams
from fxq.nn.quantized import Quantized, Weight
from fxq.nn.quantized_layer import InputQuantized, ManyQuantized, OnlyInputQuantized, WeightQuantized
from fxq.nn.recurrent import QuantGRU, QuantLSTM, QuantRNN
from fxq.nn.recurrent_cells import QuantGRUCell, QuantLSTMCell, QuantRNNCell
from fxq.nn.scaled_channels import ScaledChannels
from fxq.nn.tensor_quantizer import TensorQuantizer

Conv1d = QuantConv1d
Conv2d = QuantConv2d
Conv3d = QuantConv3d
ConvTranspose1d = QuantConvTranspose1d
ConvTranspose2d = QuantConvTranspose2d
ConvTranspose3d = QuantConvTranspose3d
Linear = QuantLinear

__all__ = [
    "BATCH_NORMS",
    "QUANTIZED",
    "BatchNormFolded",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "InputQuantized",
    "Linear",
    "ManyQuantized",
    "OnlyInputQuantized",
    "QParams",
    "QuantAdaptiveAvgPool1d",
    "QuantAdaptiveAvgPool2d",
    "QuantAdaptiveAvgPool3d",
    "QuantAvgPool1d",
    "QuantAvgPool2d",
    "QuantAvgPool3d",
    "QuantConv1d",
    "QuantConv2d",
    "QuantConv3d",
    "QuantConvTranspose1d",
    "QuantConvTranspose2d",
    "QuantConvTranspose3d",
    "QuantEmbedding",
    "QuantGRU",
    "QuantGRUCell",
    "QuantInstanceNorm1d",
    "QuantInstanceNorm2d",
    "QuantInstanceNorm3d",
    "QuantLSTM",
    "QuantLSTMCell",
    "QuantLinear",
    "QuantMaxPool1d",
    "QuantMaxPool2d",
    "QuantMaxPool3d",
    "QuantMultiheadAttention",
    "QuantRNN",
    "QuantRNNCell",
    "Quantized",
    "ScaledChannels",
    "TensorQuantizer",
    "Weight",
    "WeightQuantized",
    "computed_tensors",
    "fold_in_training",
    "has_other_hooks",
    "make_calibrator",
    "plain_type",
    "quantized_type",
    "store_computed",
]
