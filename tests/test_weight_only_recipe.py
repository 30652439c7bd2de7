"""The recipe "weight_only": weights are stored as 8 or 4 bit integers, arithmetic stays float, no data is needed."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from support.sequences import encoder, snr_db, tagger, tokens
from torch import Tensor, nn
from torch.fx import GraphModule
from torchvision.models import mobilenet_v2

import fxq
from fxq.quant import DEQUANTIZE_LOW_BIT
from fxq.runtimes import count_kinds, get_runtime

INT4 = fxq.QuantDescriptor(num_bits=4, axis=0)
BLOCKS = INT4.replace(block_size=32)


def mobilenet() -> nn.Module:
    torch.manual_seed(0)
    model = mobilenet_v2(width_mult=0.35).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    return model


def image() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "encoder": (encoder, tokens),
    "tied encoder": (lambda: encoder(is_tied=True), tokens),
    "tagger": (tagger, tokens),
    "mobilenet_v2": (mobilenet, image),
}


def low_bit_nodes(gm: GraphModule) -> list[tuple[str, int, int | None]]:
    """Return path, width and block size of each packed weight."""
    return [
        (str(node.args[0].target), node.args[2], node.args[4])
        for node in gm.graph.nodes
        if node.target is DEQUANTIZE_LOW_BIT
    ]


@pytest.mark.parametrize(("make", "inputs"), MODELS.values(), ids=MODELS)
def test_it_needs_no_data_and_the_converted_model_computes_what_the_prepared_one_does(
    make: Callable[[], nn.Module], inputs: Callable[[], Tensor]
) -> None:
    prepared = fxq.prepare(make(), inputs(), "weight_only", verify=True)
    found = fxq.convert(prepared)
    fxq.calibrate_weights(prepared)
    with torch.no_grad():
        expected = prepared(inputs())
        assert snr_db(expected, found(inputs())) > 60  # a weight between two codes may go the other way
        assert snr_db(make()(inputs()), expected) > 25


@pytest.mark.parametrize(("make", "inputs"), MODELS.values(), ids=MODELS)
def test_onnx_runtime_computes_the_same(
    make: Callable[[], nn.Module], inputs: Callable[[], Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    found = fxq.quantize(make(), recipe="weight_only", example_inputs=inputs())
    report = fxq.export_onnx(found, path)
    outputs = get_runtime("onnxruntime").run(path, inputs())[0]
    with torch.no_grad():
        # Its kernel for integer weights quantizes the other operand as well, block by block, to 8 bits.
        assert snr_db(found(inputs()), torch.from_numpy(outputs)) > 35
    assert report.size_bytes < 0.45 * sum(parameter.numel() * 4 for parameter in make().parameters())


def test_every_layer_with_weights_is_stored_as_integers_and_no_activation_is_quantized() -> None:
    for make, inputs in MODELS.values():
        assert set(fxq.explain(fxq.prepare(make(), inputs(), "weight_only")).counts) == {"weight"}
    found = fxq.quantize(mobilenet(), recipe="weight_only", example_inputs=image())
    assert [name for name, value in found.named_buffers() if value.dim() > 1 and value.is_floating_point()] == []


def test_a_rule_gives_one_layer_four_bits_in_blocks() -> None:
    recipe = fxq.recipe("weight_only").with_rules(("up", fxq.QConfig(weight=BLOCKS)))
    found = fxq.quantize(encoder(), recipe=recipe, example_inputs=tokens())
    assert low_bit_nodes(found) == [("up.weight", 4, 32)]
    assert found.get_buffer("up.weight_scale").shape == (256, 2)
    codes = found.get_buffer("up.weight")
    assert (int(codes.min()), int(codes.max())) == (-7, 7)


@pytest.mark.parametrize("block_size", [None, 32, 64, 128])
def test_the_default_of_a_recipe_gives_all_layers_four_bits_blocks_where_they_have_them(
    block_size: int | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16)).eval()
    x = torch.randn(2, 3, 6, 6)
    recipe = fxq.recipe("weight_only").replace(default=fxq.QConfig(weight=INT4.replace(block_size=block_size)))
    found = fxq.quantize(model, recipe=recipe, example_inputs=x)
    assert low_bit_nodes(found) == [("0.weight", 4, None), ("3.weight", 4, block_size)]
    report = fxq.export_onnx(found, tmp_path / "model.onnx")
    assert report.opset >= 21
    stored = {item.data_type for item in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert onnx.TensorProto.INT4 in stored or onnx.TensorProto.UINT8 in stored  # two codes a byte
    with torch.no_grad():
        assert snr_db(model(x), found(x)) > 12  # 4 bits: 16 steps


@pytest.mark.parametrize("recipe", ["weight_only", "weight_only_int4"])
@pytest.mark.parametrize(
    "clamp",
    [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.25, 0.5), nn.Threshold(0.0, 0.0)],
    ids=["relu", "relu6", "hardtanh", "threshold"],
)
def test_a_clamp_behind_a_linear_layer_does_not_cost_it_the_integer_kernel(
    clamp: nn.Module, recipe: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 32), clamp, nn.Linear(32, 8), clamp).eval(), 3 * torch.randn(4, 64)
    found = fxq.quantize(model, recipe=recipe, example_inputs=x)
    fxq.export_onnx(found, tmp_path / "model.onnx")
    operators = count_kinds(get_runtime("onnxruntime").executed_ops(tmp_path / "model.onnx"))
    assert (operators["MatMulNBits"], operators["DequantizeLinear"]) == (2, 0)
    with torch.no_grad():
        (output,) = get_runtime("onnxruntime").run(tmp_path / "model.onnx", x)
        # The kernel quantizes the other operand as well, block by block, to 8 bits.
        assert snr_db(found(x), torch.from_numpy(output)) > 30


def test_smaller_blocks_are_closer_to_the_float_model() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(256, 64)).eval(), torch.randn(8, 256)
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(64, 256) ** 3)  # a few large weights, as in trained models
    found = []
    for block_size in (None, 128, 64, 32):
        default = fxq.QConfig(weight=INT4.replace(block_size=block_size))
        quantized = fxq.quantize(model, recipe=fxq.recipe("weight_only").replace(default=default))
        with torch.no_grad():
            found.append(snr_db(model(x), quantized(x)))
    assert found == sorted(found)


def test_the_int4_recipe_packs_linear_layers_and_keeps_eight_bits_elsewhere() -> None:
    found = fxq.quantize(tagger(), recipe="weight_only_int4", example_inputs=tokens())
    assert low_bit_nodes(found) == [("tags.weight", 4, 32)]
    assert found.get_buffer("embedding.weight").dtype == torch.int8


def test_the_int4_recipe_packs_the_projections_of_attention() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 64, batch_first=True).eval()
    found = fxq.quantize(layer, recipe="weight_only_int4", example_inputs=torch.randn(2, 5, 64))
    assert {(bits, block) for _, bits, block in low_bit_nodes(found)} == {(4, 32)}
    assert len(low_bit_nodes(found)) == 6  # query, key, value, output, and the two of the feed-forward part


def test_a_layer_that_a_rule_leaves_in_float_keeps_its_weight() -> None:
    recipe = fxq.recipe("weight_only").with_rules(("lstm", None), ("tags", None))
    found = fxq.explain(fxq.prepare(tagger(), tokens(), recipe))
    assert found["lstm"].reason == "rule ('lstm', None) leaves it in float"
    assert found.counts == {"weight": 3}  # of the embedding, and two of the GRU
