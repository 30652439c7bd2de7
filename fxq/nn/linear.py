"""Quantized linear layer."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fxq.nn.quantized_layer import WeightQuantized
from fxq.quant.descriptor import QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW


class QuantLinear(WeightQuantized, nn.Linear):
    """torch.nn.Linear with quantized input and weight, by default one range per output feature."""

    default_quant_desc_weight = QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer of the quantized input and weight; shapes as in torch.nn.Linear."""
        return functional.linear(self._quantized("input", input), self.quantized_weight(), self.bias)

    def as_function(self) -> tuple[Callable[..., Tensor], dict[str, Any]]:
        """Return (torch.nn.functional.linear, {})."""
        return functional.linear, {}
