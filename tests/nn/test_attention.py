"""Quantized multi-head attention against torch.nn's, with every option."""

import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import InputError
from fxq.nn import TensorQuantizer
from fxq.nn.attention import QuantMultiheadAttention

# Our products and torch's fused kernel add in another order.
TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}

OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False, "batch_first": True},
    {"add_bias_kv": True},
    {"add_zero_attn": True, "batch_first": True},
    {"kdim": 6, "vdim": 10},
    {"kdim": 6, "add_bias_kv": True, "add_zero_attn": True, "bias": False},
]
MASKS = ["none", "bool", "float", "per head", "padding", "padding and bool", "causal"]


def switch_off(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, TensorQuantizer):
            part.disable()


def tensor(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair(options: dict[str, Any]) -> tuple[nn.MultiheadAttention, QuantMultiheadAttention]:
    torch.manual_seed(0)
    original = nn.MultiheadAttention(8, 2, **options).eval()
    module = QuantMultiheadAttention(8, 2, **options).eval()
    module.load_state_dict(original.state_dict())
    return original, module


def inputs(module: nn.MultiheadAttention, is_batched: bool) -> list[Tensor]:
    tensors = [tensor(4, 3, 8), tensor(5, 3, module.kdim, seed=2), tensor(5, 3, module.vdim, seed=3)]
    if not is_batched:
        return [each[:, 0] for each in tensors]
    return [each.transpose(0, 1) for each in tensors] if module.batch_first else tensors


def masks(name: str, is_batched: bool) -> dict[str, Any]:
    upper = torch.ones(4, 5).triu(2).bool()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
    per_head = tensor(6 if is_batched else 2, 4, 5, seed=4)
    padding = padding if is_batched else padding[1]
    return {
        "none": {},
        "bool": {"attn_mask": upper},
        "float": {"attn_mask": tensor(4, 5, seed=5)},
        "per head": {"attn_mask": per_head},
        "padding": {"key_padding_mask": padding},
        "padding and bool": {"key_padding_mask": padding, "attn_mask": upper},
        "causal": {"attn_mask": upper, "is_causal": True},
    }[name]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("is_batched", [True, False], ids=["batched", "unbatched"])
def test_with_quantization_off_the_numbers_are_those_of_torch(options, mask: str, is_batched: bool) -> None:
    original, module = pair(options)
    switch_off(module)
    arguments = inputs(module, is_batched)
    for average in (True, False):
        keywords = masks(mask, is_batched) | {"average_attn_weights": average}
        for actual, expected in zip(module(*arguments, **keywords), original(*arguments, **keywords), strict=True):
            torch.testing.assert_close(actual, expected, **TOLERANCE)
    # torch takes another path without weights, where the causal hint stands for a square mask of its own.
    if mask != "causal":
        actual, nothing = module(*arguments, **masks(mask, is_batched), need_weights=False)
        expected, _ = original(*arguments, **masks(mask, is_batched), need_weights=False)
        torch.testing.assert_close(actual, expected, **TOLERANCE)
        assert nothing is None


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_with_quantization_on_each_quantizer_acts(options) -> None:
    original, module = pair(options)
    arguments = inputs(module, True)
    outputs, expected = module(*arguments)[0], original(*arguments)[0]
    error = (outputs - expected).abs().max()
    assert 0 < error < 0.05  # 8 bits of values of about 1, through four products
    quantizers = [part for part in module.modules() if isinstance(part, TensorQuantizer)]
    assert len(quantizers) == (8 + 2 if module._qkv_same_embed_dim else 8 + 4)
    switch_off(module)
    plain = module(*arguments)[0]
    for quantizer in quantizers:
        quantizer.enable()
        assert not torch.equal(module(*arguments)[0], plain), quantizer
        quantizer.disable()


def test_softmax_and_value_product_use_quantized_operands() -> None:
    _, module = pair({"batch_first": True})
    seen = {}
    for name, part in module.named_modules():
        if isinstance(part, TensorQuantizer):
            part.register_forward_hook(lambda _part, _args, result, name=name: seen.setdefault(name, result))
    outputs, _ = module(*[tensor(2, 4, 8)] * 3)
    attended = seen["_softmax_quantizer"] @ seen["_value_heads_quantizer"]
    quantized = TensorQuantizer()(attended.transpose(1, 2).flatten(2))
    expected = nn.functional.linear(quantized, seen["_out_proj_weight_quantizer"], module.out_proj.bias)
    assert torch.equal(outputs, expected)


def test_from_float_shares_parameters_and_trains() -> None:
    original = nn.MultiheadAttention(8, 2, dropout=0.1)
    module = QuantMultiheadAttention.from_float(original)
    assert module.out_proj.weight is original.out_proj.weight
    module(*inputs(module, True))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in original.parameters())
    assert len(original._forward_pre_hooks) == 0
    pickle.loads(pickle.dumps(module))


def test_causal_hint_needs_its_mask() -> None:
    _, module = pair({})
    with pytest.raises(InputError, match="attn_mask"):
        module(*inputs(module, True), is_causal=True)


@pytest.mark.parametrize(("has_padding", "is_nested"), list(itertools.product([False, True], [False, True])))
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_fast_path_of_the_transformer_does_not_bypass_the_quantizers(has_padding: bool, is_nested: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    layer.self_attn = QuantMultiheadAttention.from_float(layer.self_attn)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=is_nested).eval()
    x = tensor(3, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 3 + [True] * 2]) if has_padding else None
    if has_padding and is_nested:
        with torch.no_grad(), pytest.raises(InputError, match="enable_nested_tensor=False"):
            encoder(x, src_key_padding_mask=padding)
        return
    with torch.no_grad():
        fast = encoder(x, src_key_padding_mask=padding)
    slow = encoder(x.requires_grad_(), src_key_padding_mask=padding)
    kept = ~padding if padding is not None else torch.ones(3, 5, dtype=torch.bool)
    assert torch.equal(fast[kept], slow[kept])
