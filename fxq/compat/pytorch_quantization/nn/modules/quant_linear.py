"""Quantized linear layer."""

from fxq import nn
from fxq.compat.pytorch_quantization.nn.modules.compat_module import CompatModule
from fxq.compat.pytorch_quantization.tensor_quant import QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW

__all__ = ["Linear", "QuantLinear"]


class QuantLinear(CompatModule, nn.QuantLinear):
    """torch.nn.Linear with quantized input and weight, by default one range per output feature."""

    default_quant_desc_weight = QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW


Linear = QuantLinear
