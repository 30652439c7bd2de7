"""Tracing enters torch.nn's transformer stacks, and the graph computes what they define."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.graph import graph_text
from fxq.graph.trace import trace

# torch's own, about its own kernels.
pytestmark = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]

# One fused kernel in torch, module by module here: sums of 16 values of order 1, in another order.
FUSED = {"atol": 2e-6, "rtol": 1e-5}
LENGTH, BATCH, SIZE = 5, 3, 16


@contextmanager
def plain_torch() -> Iterator[None]:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def sequence(batch_first: bool, seed: int = 0) -> Tensor:
    shape = (BATCH, LENGTH, SIZE) if batch_first else (LENGTH, BATCH, SIZE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padding() -> Tensor:
    mask = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    mask[0, -2:] = True
    return mask


def causal() -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(LENGTH)


def encoder(batch_first: bool = True, norm_first: bool = False, nested: bool = False, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(SIZE, 4, 32, batch_first=batch_first, norm_first=norm_first, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval()


def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, Tensor, GraphModule]:
    graph = trace(model, inputs)
    with torch.no_grad():
        return graph(*inputs), model(*inputs), graph


def test_the_layers_become_nodes() -> None:
    assert (
        graph_text(trace(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(), (sequence(True),)))
        == """\
src = input
src_mask = input
src_key_padding_mask = input
is_causal = input
self_attn = MultiheadAttention[self_attn](src, src, src, attn_mask=None, key_padding_mask=None, need_weights=False, \
is_causal=False)
getitem = getitem(self_attn, 0)
dropout1 = Dropout[dropout1](getitem)
add = add(src, dropout1)
norm1 = LayerNorm[norm1](add)
linear1 = Linear[linear1](norm1)
relu = relu(linear1, inplace=False)
dropout = Dropout[dropout](relu)
linear2 = Linear[linear2](dropout)
dropout2 = Dropout[dropout2](linear2)
add_1 = add(norm1, dropout2)
norm2 = LayerNorm[norm2](add_1)
return norm2"""
    )


def test_the_hint_that_a_mask_is_causal_is_passed_on() -> None:
    text = graph_text(trace(encoder(), (sequence(True), causal(), None, True)))
    assert text.count("is_causal=True") == 2


MASKS: dict[str, tuple[Any, ...]] = {
    "none": (),
    "float": (causal(),),
    "bool": (causal().isinf(),),
    "padding": (None, padding()),
    "bool and padding": (causal().isinf(), padding()),
    "causal": (causal(), None, True),
}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "time first"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["norm first", "norm last"])
def test_an_encoder_gives_the_numbers_of_torch(masks: tuple[Any, ...], batch_first: bool, norm_first: bool) -> None:
    inputs = (sequence(batch_first), *masks)
    model = encoder(batch_first, norm_first)
    found, expected, graph = outputs(model, inputs)
    torch.testing.assert_close(found, expected, **FUSED)
    assert sum(isinstance(module, nn.MultiheadAttention) for module in graph.modules()) == 2
    with plain_torch(), torch.no_grad():
        # is_causal=True lets torch's attention drop the mask for a flag, bit by bit the same only for the same choice.
        torch.testing.assert_close(graph(*inputs), model(*inputs), atol=0, rtol=0)


@pytest.mark.parametrize("options", [{"activation": "gelu"}, {"bias": False}, {"activation": nn.SiLU()}], ids=str)
def test_options_of_the_layers_are_followed(options: dict[str, Any]) -> None:
    found, expected, _ = outputs(encoder(**options), (sequence(True),))
    torch.testing.assert_close(found, expected, **FUSED)


def test_nested_tensors_differ_at_padded_positions_only() -> None:
    found, expected, _ = outputs(encoder(nested=True), (sequence(True), None, padding()))
    seen = ~padding()
    torch.testing.assert_close(found[seen], expected[seen], **FUSED)
    assert torch.equal(expected[~seen], torch.zeros_like(expected[~seen]))
    assert bool((found[~seen] != 0).any())


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "time first"])
@pytest.mark.parametrize(
    "masks",
    [(), (None, causal()), (causal(), causal(), causal()), (None, None, None, padding(), padding(), padding())],
    ids=["none", "causal target", "all", "padding"],
)
def test_a_whole_transformer_gives_the_numbers_of_torch(batch_first: bool, masks: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Transformer(SIZE, 4, 1, 1, 32, batch_first=batch_first).eval()
    model.encoder.use_nested_tensor = False
    found, expected, graph = outputs(model, (sequence(batch_first), sequence(batch_first, 1), *masks))
    torch.testing.assert_close(found, expected, **FUSED)
    assert sum(type(module) is nn.Linear for module in graph.modules()) == 4


def test_a_decoder_alone_is_entered() -> None:
    torch.manual_seed(0)
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(SIZE, 4, 32, batch_first=True), 1).eval()
    found, expected, _ = outputs(model, (sequence(True), sequence(True, 1), causal()))
    torch.testing.assert_close(found, expected, **FUSED)


def test_another_batch_size_works() -> None:
    model = encoder()
    graph = trace(model, (sequence(True),))
    x = torch.randn(7, 9, SIZE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), **FUSED)


class Doubled(nn.TransformerEncoderLayer):
    def forward(self, src: Tensor, *masks: Any, **options: Any) -> Tensor:
        return super().forward(src, *masks, **options) * 2


class Renamed(nn.TransformerEncoderLayer):
    """Its forward is torch's."""


@pytest.mark.parametrize("kind", [Doubled, Renamed])
def test_a_subclass_keeps_its_own_forward(kind: type[nn.TransformerEncoderLayer]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(SIZE, 4, 32, batch_first=True)).eval()
    found, expected, _ = outputs(model, (sequence(True),))
    torch.testing.assert_close(found, expected, **FUSED)


def test_a_stack_can_be_kept_whole() -> None:
    model = nn.Sequential(encoder())
    text = graph_text(trace(model, (sequence(True),), leaf_modules=("0",)))
    assert "TransformerEncoder[0](input_1)" in text


def test_prepare_quantizes_what_is_inside() -> None:
    prepared = fxq.prepare(nn.Sequential(encoder()).eval(), sequence(True), "tensorrt", verify=True)
    quantized = {path for path, module in prepared.named_modules() if isinstance(module, fxq.nn.QuantLinear)}
    assert {f"0.layers.{index}.linear{part}" for index in (0, 1) for part in (1, 2)} <= quantized
