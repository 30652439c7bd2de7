"""Descriptors and the pure functions of quantization."""

from fxq.quant.affine import fake_tensor_quant, tensor_quant
from fxq.quant.descriptor import QuantDescriptor
from fxq.quant.qconfig import QConfig, Rule
from fxq.quant.qdq_ops import DEQUANTIZE, QUANTIZE

__all__ = ["DEQUANTIZE", "QUANTIZE", "QConfig", "QuantDescriptor", "Rule", "fake_tensor_quant", "tensor_quant"]
