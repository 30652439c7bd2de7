"""torch.nn's transformer stacks as plain computations, so that tracing can enter them.

In evaluation torch.nn.TransformerEncoder and its layers may leave Python for one fused kernel, which a graph cannot
hold, and the stacks look into the values of a mask to learn whether it is causal. The forwards here compute what the
originals define, module by module:

- Numbers agree with torch's within float rounding, where the fused kernel adds in another order; bit by bit where
  torch does not use it (``torch.backends.mha.set_fastpath_enabled(False)``, post-norm layers in training mode, ...).
- With ``src_key_padding_mask`` torch's nested tensors return 0 at the padded positions; here they hold what the layers
  compute there, as torch's own do with ``enable_nested_tensor=False``. No other position depends on them.
- ``is_causal=None`` counts as False: it is a hint about the mask, and the mask itself is applied.

Source: torch.nn.TransformerEncoder, TransformerEncoderLayer, TransformerDecoder.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

# Entered by tracing; nn.Transformer and nn.TransformerDecoderLayer need no other forward than their own.
STACKS = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)


def plain_forward(module: nn.Module) -> Callable[..., Any] | None:
    """Return the function ``(module, *inputs)`` to trace instead of the module's forward, None where that serves.

    A subclass or an instance that has a forward of its own keeps it.
    """
    if "forward" in vars(module):
        return None
    return _FORWARDS.get(type(module).forward)


def _encoder(
    self: Any,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,
) -> Tensor:
    mask, padding = _additive(mask, src.dtype), _additive(src_key_padding_mask, src.dtype)
    for layer in self.layers:
        src = layer(src, src_mask=mask, is_causal=is_causal is True, src_key_padding_mask=padding)
    return src if self.norm is None else self.norm(src)


def _encoder_layer(
    self: Any,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    options = {
        "attn_mask": _additive(src_mask, src.dtype),
        "key_padding_mask": _additive(src_key_padding_mask, src.dtype),
        "need_weights": False,
        "is_causal": is_causal,
    }

    def attend(x: Tensor) -> Any:
        return self.dropout1(self.self_attn(x, x, x, **options)[0])

    def feed(x: Tensor) -> Any:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))

    if self.norm_first:
        src = src + attend(self.norm1(src))
        return src + feed(self.norm2(src))  # type: ignore[no-any-return]
    src = self.norm1(src + attend(src))
    return self.norm2(src + feed(src))  # type: ignore[no-any-return]


def _decoder(  # noqa: PLR0913 - the signature of torch.nn.TransformerDecoder
    self: Any,
    tgt: Tensor,
    memory: Tensor,
    tgt_mask: Tensor | None = None,
    memory_mask: Tensor | None = None,
    tgt_key_padding_mask: Tensor | None = None,
    memory_key_padding_mask: Tensor | None = None,
    tgt_is_causal: bool | None = None,
    memory_is_causal: bool = False,
) -> Tensor:
    for layer in self.layers:
        tgt = layer(
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal is True,
            memory_is_causal=memory_is_causal,
        )
    return tgt if self.norm is None else self.norm(tgt)


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)


_FORWARDS: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType(
    {
        nn.TransformerEncoder.forward: _encoder,
        nn.TransformerEncoderLayer.forward: _encoder_layer,
        nn.TransformerDecoder.forward: _decoder,
    }
)
