"""Descriptors and the pure functions of quantization."""

from fxq.quant.affine import fake_tensor_quant, tensor_quant
from fxq.quant.affine_range import affine_tensor_quant, fake_affine_tensor_quant
from fxq.quant.descriptor import (
    QUANT_DESC_8BIT_CONV1D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONV3D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONVTRANSPOSE1D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONVTRANSPOSE2D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONVTRANSPOSE3D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW,
    QUANT_DESC_8BIT_PER_TENSOR,
    QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR,
    QuantDescriptor,
)
from fxq.quant.float8 import e4m3_quant, fake_e4m3_quant
from fxq.quant.ops import LOWERED_OPS, lowered_kind
from fxq.quant.ops.dynamic import DYNAMIC_LINEAR, DYNAMIC_MATMUL
from fxq.quant.ops.dynamic_lstm import DYNAMIC_LSTM_LAYER
from fxq.quant.ops.low_bit import DEQUANTIZE_LOW_BIT
from fxq.quant.ops.lowered_op import LoweredOp
from fxq.quant.ops.quantize import DEQUANTIZE, QUANTIZE
from fxq.quant.ops.recurrent import GRU_LAYER, LSTM_LAYER, RNN_LAYER
from fxq.quant.qconfig import QConfig, Rule

__all__ = [
    "DEQUANTIZE",
    "DEQUANTIZE_LOW_BIT",
    "DYNAMIC_LINEAR",
    "DYNAMIC_LSTM_LAYER",
    "DYNAMIC_MATMUL",
    "GRU_LAYER",
    "LOWERED_OPS",
    "LSTM_LAYER",
    "QUANTIZE",
    "QUANT_DESC_8BIT_CONV1D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_CONV3D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_CONVTRANSPOSE1D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_CONVTRANSPOSE2D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_CONVTRANSPOSE3D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW",
    "QUANT_DESC_8BIT_PER_TENSOR",
    "QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR",
    "RNN_LAYER",
    "LoweredOp",
    "QConfig",
    "QuantDescriptor",
    "Rule",
    "affine_tensor_quant",
    "e4m3_quant",
    "fake_affine_tensor_quant",
    "fake_e4m3_quant",
    "fake_tensor_quant",
    "lowered_kind",
    "tensor_quant",
]
