"""Quantized multi-head attention: the projections and both matrix products are quantized, softmax and masks are not.

Quantizers: ``query``, ``key`` and ``value`` before the projections; the two operands of each product (``query_heads``
and ``key_heads``, ``softmax`` and ``value_heads``); ``attended`` before the output projection; and each weight.

Source of the formula: Vaswani et al. 2017, arXiv:1706.03762; options and shapes: torch.nn.MultiheadAttention.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxq.errors import InputError
from fxq.nn.quantized_layer import ManyQuantized
from fxq.quant.descriptor import QuantDescriptor


class QuantMultiheadAttention(ManyQuantized, nn.MultiheadAttention):
    """torch.nn.MultiheadAttention with quantized inputs, weights and matrix products."""

    products = frozenset({"query_heads", "key_heads", "softmax", "value_heads"})

    def forward(  # noqa: PLR0913 - the signature of torch.nn.MultiheadAttention
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended values and, with ``need_weights``, the attention weights; as torch.nn does.

        Raises:
            InputError: ``is_causal`` without the mask that it is a hint for, or a nested tensor.
        """
        if query.is_nested:
            raise InputError(
                "nested tensors cannot be quantized: make TransformerEncoder with enable_nested_tensor=False"
            )
        if is_causal and attn_mask is None:
            raise InputError("is_causal is a hint about attn_mask: give attn_mask too")
        is_batched = query.dim() == 3
        tensors = [self._batch_first(tensor, is_batched) for tensor in (query, key, value)]
        heads = self._heads(*self._projected(tensors))
        mask = self._mask(key_padding_mask, attn_mask, query.dtype)
        attended, weights = self._attend(heads, mask)
        outputs = functional.linear(
            self._quantized("attended", attended), self._weight("out_proj.weight"), self.out_proj.bias
        )
        if not is_batched:
            outputs, weights = outputs.squeeze(0), weights.squeeze(0)
        elif not self.batch_first:
            outputs = outputs.transpose(0, 1)
        if not need_weights:
            return outputs, None
        return outputs, weights.mean(-3) if average_attn_weights else weights

    def _batch_first(self, tensor: Tensor, is_batched: bool) -> Tensor:
        if not is_batched:
            return tensor.unsqueeze(0)
        return tensor if self.batch_first else tensor.transpose(0, 1)

    def _projected(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return query, key and value, each (batch, length, embed_dim)."""
        if self._qkv_same_embed_dim:
            weights = self._weight("in_proj_weight").chunk(3)
        else:
            weights = tuple(self._weight(name) for name in self.weight_slots(self)[:3])
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        projected = []
        for name, tensor, weight, bias in zip(("query", "key", "value"), tensors, weights, biases, strict=True):
            projected.append(functional.linear(self._quantized(name, tensor), weight, bias))
        return projected

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each (batch, heads, length, head_dim), with the extra keys of the options."""
        if self.bias_k is not None and self.bias_v is not None:
            extra = (key.shape[0], 1, self.embed_dim)
            key = torch.cat([key, self.bias_k.expand(extra)], 1)
            value = torch.cat([value, self.bias_v.expand(extra)], 1)
        if self.add_zero_attn:
            key, value = functional.pad(key, (0, 0, 0, 1)), functional.pad(value, (0, 0, 0, 1))
        return self._split(query), self._split(key), self._split(value)

    def _split(self, tensor: Tensor) -> Tensor:
        batch, length, _ = tensor.shape
        return tensor.reshape(batch, length, self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, padding: Tensor | None, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Return the sum of the masks, as what to add to the scores (batch, heads, queries, keys)."""
        total: Tensor | None = None
        if mask is not None:
            total = _additive(mask, dtype)
            total = total.reshape(-1, self.num_heads, *total.shape[1:]) if total.dim() == 3 else total[None, None]
        if padding is not None:
            padding = _additive(padding, dtype)
            padding = (padding if padding.dim() == 2 else padding.unsqueeze(0))[:, None, None]
            total = padding if total is None else total + padding
        # The extra keys of add_bias_kv and add_zero_attn are never masked.
        extra = int(self.bias_k is not None) + int(self.add_zero_attn)
        return functional.pad(total, (0, extra)) if total is not None and extra else total

    def _attend(self, heads: tuple[Tensor, Tensor, Tensor], mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the attended values (batch, queries, embed_dim) and the weights (batch, heads, queries, keys)."""
        query, key, value = heads
        query = self._quantized("query_heads", query * math.sqrt(1.0 / self.head_dim))
        # Turned before it is quantized: runtimes fuse a product that reads a dequantize, not a transpose behind one.
        scores = query @ self._quantized("key_heads", key.transpose(-2, -1))
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = functional.dropout(weights, self.dropout, self.training)
        attended = self._quantized("softmax", weights) @ self._quantized("value_heads", value)
        return attended.transpose(1, 2).flatten(2), weights

    def _add_quantizers(self, descriptors: Mapping[str, QuantDescriptor | None]) -> None:
        super()._add_quantizers(descriptors)
        # nn.TransformerEncoderLayer has a fast path that reads the weights and never calls this forward, so nothing
        # would be quantized in evaluation. It stays away from modules with hooks.
        self.register_forward_pre_hook(_no_fast_path)

    @classmethod
    def activation_slots(cls, module: nn.Module) -> list[str]:
        """Return the inputs of the projections, and the operands of the two products."""
        return ["query", "key", "value", "query_heads", "key_heads", "softmax", "value_heads", "attended"]

    @classmethod
    def weight_slots(cls, module: nn.Module) -> list[str]:
        """Return the projections: packed into one where query, key and value are equally wide."""
        separate = ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
        return [*(["in_proj_weight"] if module._qkv_same_embed_dim else separate), "out_proj.weight"]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)


def _no_fast_path(_module: nn.Module, _args: object) -> None:
    """Change nothing; see ``_add_quantizers``."""
