"""Multi-head attention is written out: projections, products and softmax, with each weight as stored integers."""

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

import fxq
from fxq.graph import graph_text
from fxq.nn import QuantMultiheadAttention
from fxq.quant import DEQUANTIZE, QUANTIZE
from fxq.runtimes import get_runtime

# Sums of a few values of order 1 in another order; one code more or less would be a thousand times that.
SAME = {"atol": 2e-6, "rtol": 1e-5}
ASKED = ((nn.MultiheadAttention, fxq.QConfig()),)
STATIC = [fxq.recipe(name).with_rules(*ASKED) for name in ("tensorrt", "onnxruntime")]
RECIPES = [*STATIC, fxq.recipe("dynamic"), fxq.recipe("weight_only")]
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Attends(nn.Module):
    """Self-attention."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(8, 2, **options)

    def forward(self, x: Tensor) -> Any:
        return self.attn(x, x, x, need_weights=False)[0]


class Crosses(Attends):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Any:
        return self.attn(query, key, value)


class Masked(Attends):
    def forward(self, x: Tensor, padding: Tensor, mask: Tensor) -> Any:
        return self.attn(x, x, x, key_padding_mask=padding, attn_mask=mask, need_weights=False)[0]


def lowered_with(model: nn.Module, inputs: tuple[Any, ...], recipe: fxq.Recipe) -> tuple[GraphModule, GraphModule]:
    prepared = fxq.prepare(model.eval(), inputs, recipe, verify=True)
    if recipe.name in ("tensorrt", "onnxruntime"):
        fxq.calibrate(prepared, [inputs], progress=False)
    else:
        fxq.calibrate_weights(prepared)
    return prepared, fxq.convert(prepared)


def assert_lowered_alike(model: nn.Module, inputs: tuple[Any, ...], recipe: fxq.Recipe) -> GraphModule:
    prepared, lowered = lowered_with(model, inputs, recipe)
    assert any(isinstance(module, QuantMultiheadAttention) for module in prepared.modules())
    assert not any(isinstance(module, nn.MultiheadAttention) for module in lowered.modules())
    with torch.no_grad():
        expected, found = pytree.tree_leaves(prepared(*inputs)), pytree.tree_leaves(lowered(*inputs))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if other is None:
            assert one is None
        else:
            torch.testing.assert_close(one, other, **SAME)
    return lowered


CROSS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "plain": ({}, (8, 8)),
    "batch first": ({"batch_first": True}, (8, 8)),
    "no bias": ({"bias": False}, (8, 8)),
    "extra keys": ({"add_bias_kv": True, "add_zero_attn": True}, (8, 8)),
    "other sizes": ({"kdim": 6, "vdim": 10}, (6, 10)),
}


@each_recipe
@pytest.mark.parametrize(("options", "sizes"), CROSS.values(), ids=CROSS)
def test_attention_computes_what_it_did(recipe, options, sizes) -> None:
    inputs = (tensor(5, 3, 8), tensor(5, 3, sizes[0], seed=1), tensor(5, 3, sizes[1], seed=2))
    assert_lowered_alike(Crosses(**options), inputs, recipe)


@each_recipe
def test_an_unbatched_sequence_is_taken(recipe) -> None:
    assert_lowered_alike(Attends(), (tensor(5, 8),), recipe)


def padding() -> Tensor:
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, -2:] = True
    return mask


@each_recipe
@pytest.mark.parametrize("per_head", [False, True], ids=["one mask", "a mask per head"])
def test_masks_are_applied(recipe, per_head) -> None:
    mask = torch.ones(5, 5).triu(1).bool()
    inputs = (tensor(3, 5, 8), padding(), mask.expand(6, 5, 5) if per_head else mask)
    lowered = assert_lowered_alike(Masked(batch_first=True), inputs, recipe)
    changed = inputs[0].clone()
    changed[0, -1] *= 0.5  # padded
    with torch.no_grad():
        first, second = lowered(*inputs), lowered(changed, *inputs[1:])
    assert torch.equal(first[0, :-1], second[0, :-1])
    assert not torch.equal(first[0, -1], second[0, -1])


@each_recipe
@pytest.mark.parametrize("average", [True, False], ids=["averaged", "per head"])
def test_attention_weights_are_returned_on_request(recipe, average) -> None:
    class Weights(Attends):
        def forward(self, x: Tensor) -> Any:
            return self.attn(x, x, x, average_attn_weights=average)

    assert_lowered_alike(Weights(), (tensor(5, 3, 8),), recipe)


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "time first"])
def test_query_key_and_value_that_are_one_tensor_are_quantized_once(batch_first) -> None:
    # Time first, the forward turns each of the three: they must still be found to be one.
    _, lowered = lowered_with(Attends(batch_first=batch_first), (tensor(3, 5, 8),), STATIC[0])
    calls = Counter(node.target for node in lowered.graph.nodes)
    assert calls[QUANTIZE] == 1 + 4 + 1  # the input, four operands of products, what goes into the last projection
    assert calls[DEQUANTIZE] == calls[QUANTIZE] + 4  # and four weights
    assert "dropout" not in graph_text(lowered)
    assert "chunk" not in graph_text(lowered)


def test_the_packed_projection_becomes_three_stored_weights() -> None:
    prepared, lowered = lowered_with(Attends(), (tensor(5, 3, 8),), STATIC[0])
    found = prepared.attn._in_proj_weight_quantizer.qparams()
    codes = torch.round(prepared.attn.in_proj_weight.detach() / found.scale[:, None]).to(torch.int8)
    stored = [lowered.get_buffer(f"attn.in_proj_weight_{part}") for part in range(3)]
    assert torch.equal(torch.cat(stored), codes)


def test_products_stay_in_float_where_the_target_wants_them_to() -> None:
    _, lowered = lowered_with(Attends(), (tensor(5, 3, 8),), fxq.recipe("dynamic"))
    text = graph_text(lowered)
    assert text.count("= dynamic_linear(") == 4
    assert text.count("= matmul(") == 2
    assert "dynamic_matmul(" not in text


def test_products_whose_operands_are_dynamic_are_one_operator() -> None:
    dynamic = fxq.QuantDescriptor(unsigned=True, symmetric=False, calibrator="dynamic")
    model = nn.Sequential(nn.Identity(), Attends()).eval()
    model[1].attn = QuantMultiheadAttention.from_float(model[1].attn, input=dynamic)
    x = tensor(5, 3, 8)
    prepared, lowered = lowered_with(model, (x,), fxq.recipe("dynamic"))
    assert graph_text(lowered).count("= dynamic_matmul(") == 2
    with torch.no_grad():  # a value between two codes may go to either: a step or two of outputs below 1
        torch.testing.assert_close(lowered(x), prepared(x), atol=0.01, rtol=0)


def test_without_example_inputs_it_stays_in_float_and_says_why() -> None:
    prepared = fxq.prepare(Attends().eval(), None, STATIC[0])
    assert type(prepared.attn) is nn.MultiheadAttention
    assert "give fxq.prepare() example_inputs" in str(fxq.explain(prepared))


@each_recipe
def test_onnxruntime_agrees_for_another_batch_and_length_of_batch(recipe, tmp_path: Path) -> None:
    model = Attends(batch_first=True)
    _, lowered = lowered_with(model, (tensor(3, 5, 8),), recipe)
    path = fxq.export_onnx(lowered, tmp_path / "attention.onnx").path  # checked on the example
    x = tensor(4, 5, 8, seed=5)
    (found,) = get_runtime("onnxruntime").run(path, x)
    with torch.no_grad():
        expected = lowered(x)
    # 8 bits of outputs below 1, and a flipped code or two on the way.
    assert float((torch.tensor(found) - expected).abs().max()) < 0.02
    weights = {
        item.data_type
        for item in onnx.load(path).graph.initializer
        if "proj_weight" in item.name or "out_proj.weight" in item.name
        if not item.name.endswith(("scale", "zero_point"))
    }
    assert weights == {onnx.TensorProto.INT8}


@pytest.mark.slow  # smaller ones are quantized whole in tests/frontend
def test_a_vision_transformer_goes_through_both_static_targets(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10).eval()
    nn.init.normal_(model.heads.head.weight, std=0.1)  # it starts with zeros
    images, others = tensor(64, 3, 32, 32), tensor(16, 3, 32, 32, seed=1)
    for recipe in STATIC:
        prepared = fxq.prepare(model, images[:1], recipe)
        fxq.calibrate(prepared, images.split(32), progress=False)
        converted = fxq.convert(prepared)
        with torch.no_grad():
            expected, found = model(others), converted(others)
        noise = (found - expected).square().mean() / expected.square().mean()
        assert float(-10 * torch.log10(noise)) > 24  # measured 28.4 and 28.6 dB
        fxq.export_onnx(converted, tmp_path / "vit.onnx")
