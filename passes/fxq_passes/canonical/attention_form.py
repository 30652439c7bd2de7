"""Attention as the products that it consists of: ``softmax(scale * Q K^T + mask) V``.

Source: Vaswani et al. 2017, arXiv:1706.03762; options: torch.nn.functional.scaled_dot_product_attention.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn import functional as F


def attention_form(may_hide_rows: bool) -> Callable[..., Tensor]:
    """Return a function that computes what scaled_dot_product_attention does.

    Args:
        may_hide_rows: the mask may hide all keys from a query. Where it does, the result is 0 and not NaN.
    """

    def attention(  # noqa: PLR0913 - the signature of torch's function
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: Any = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            key, value = _for_all_heads(key, query), _for_all_heads(value, query)
        # Scaled before the product: it costs least there, and a product may be followed by its softmax at once.
        query = query * (1 / math.sqrt(int(query.shape[-1])) if scale is None else scale)
        scores = query @ key.transpose(-2, -1)
        hidden = None
        if attn_mask is not None and may_hide_rows:
            is_bool = attn_mask.dtype == torch.bool
            seen = attn_mask if is_bool else attn_mask > -torch.inf
            hidden = seen.any(-1, keepdim=True).logical_not()
            attn_mask = attn_mask.logical_or(hidden) if is_bool else attn_mask.masked_fill(hidden, 0.0)
        if is_causal:
            attn_mask = query.new_ones((query.shape[-2], key.shape[-2]), dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(attn_mask.logical_not(), -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        weights = torch.softmax(scores, -1)
        if isinstance(dropout_p, Proxy) or dropout_p > 0:
            weights = F.dropout(weights, dropout_p, training=True)
        attended = weights @ value
        return attended if hidden is None else attended.masked_fill(hidden, 0.0)

    return attention


def _for_all_heads(tensor: Tensor, query: Tensor) -> Tensor:
    """Return keys or values (..., heads, length, size), each head repeated for the query heads that share it."""
    repeats = int(query.shape[-3]) // int(tensor.shape[-3])
    kept = [-1] * (tensor.dim() - 2)
    return tensor.unsqueeze(-3).expand(*kept, repeats, -1, -1).flatten(-4, -3)
