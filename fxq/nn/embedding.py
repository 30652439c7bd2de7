"""Quantized embedding: the table is quantized, by default one range per row."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxq.errors import InputError
from fxq.nn.computed import computed_tensors
from fxq.nn.quantized_layer import WeightQuantized
from fxq.quant.descriptor import QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW


class QuantEmbedding(WeightQuantized, nn.Embedding):
    """torch.nn.Embedding with a quantized table. Its input is indices, which have no quantizer.

    Raises:
        InputError: a gradient is wanted with ``sparse=True``: sparse gradients do not pass a quantizer.
    """

    default_quant_desc_input = None
    default_quant_desc_weight = QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """Return whether it is an embedding; one with ``max_norm`` writes to its table, which must be stored."""
        return super().takes(module) and not (module.max_norm is not None and computed_tensors(module))

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of the quantized table; shapes as in torch.nn.Embedding."""
        if self.max_norm is not None:
            # torch renormalises the table in place: the stored one, not the quantized copy of it.
            with torch.no_grad():
                torch.embedding_renorm_(self.weight, input.contiguous(), self.max_norm, self.norm_type)
        table = self.quantized_weight()
        is_stored = table is self.weight  # the quantizer is off
        if self.sparse and table.requires_grad and not is_stored:
            raise InputError("sparse gradients do not pass a quantizer: make QuantEmbedding with sparse=False")
        function, options = self.as_function()
        return function(input, table, None, **options, sparse=self.sparse and is_stored)

    def as_function(self) -> tuple[Callable[..., Tensor], dict[str, Any]]:
        """Return a look-up (indices, weight, None) and its options; ``max_norm`` has been applied before."""
        return _look_up, {"padding_idx": self.padding_idx, "scale_grad_by_freq": self.scale_grad_by_freq}


def _look_up(indices: Tensor, weight: Tensor, _bias: None, **options: Any) -> Tensor:
    return functional.embedding(indices, weight, **options)
