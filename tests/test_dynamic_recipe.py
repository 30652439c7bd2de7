"""The recipe "dynamic": activations are quantized with the range that they have at run time, without any data."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from support.sequences import encoder, snr_db, tagger, tokens
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.quant import DYNAMIC_LINEAR, DYNAMIC_LSTM_LAYER, DYNAMIC_MATMUL
from fxq.runtimes import count_kinds, get_runtime

MODELS = {"encoder": encoder, "tied encoder": lambda: encoder(is_tied=True), "tagger": tagger}


def converted(model: nn.Module, *inputs: Tensor, recipe: str | fxq.Recipe = "dynamic") -> GraphModule:
    return fxq.convert(fxq.prepare(model.eval(), inputs, recipe, verify=True))


def targets(gm: GraphModule) -> list[object]:
    return [node.target for node in gm.graph.nodes]


def run(path: Path, x: Tensor) -> Tensor:
    return torch.from_numpy(get_runtime("onnxruntime").run(path, x)[0])


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_it_needs_no_data_and_the_converted_model_computes_what_the_prepared_one_does(
    make: Callable[[], nn.Module],
) -> None:
    prepared = fxq.prepare(make(), tokens(), "dynamic", verify=True)
    found = fxq.convert(prepared)
    fxq.calibrate_weights(prepared)
    with torch.no_grad():
        expected = prepared(tokens())
        # The same codes and products: what is left is the order of float sums, 1e-6, except where a value lies between
        # two codes, which moves one of some thousand products by a step.
        assert snr_db(expected, found(tokens())) > 60
        assert snr_db(make()(tokens()), expected) > 30


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_onnx_runtime_computes_the_same_on_integers(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    found = converted(make(), tokens())
    report = fxq.export_onnx(found, path)
    with torch.no_grad():
        # The hidden state of an LSTM feeds back what was rounded the other way.
        assert snr_db(found(tokens()), run(path, tokens())) > 40
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= operators
    assert ("DynamicQuantizeLSTM" in operators) == (make is tagger)
    # One byte instead of four; biases, steps and nodes weigh in so small a model.
    assert report.size_bytes < 0.45 * sum(parameter.numel() * 4 for parameter in make().parameters())


def test_each_kind_of_layer_gets_the_form_that_the_runtime_has() -> None:
    explanation = fxq.explain(fxq.prepare(tagger(), tokens(), "dynamic"))
    assert [tensor.role for tensor in explanation["embedding"].quantized] == ["weight"]
    lstm = explanation["lstm"].quantized
    assert {tensor.descriptor for tensor in lstm if tensor.role == "inside"} == {"dynamic uint8 affine per tensor"}
    assert sum(tensor.role == "weight" for tensor in lstm) == 8
    gru = explanation["gru"].quantized
    assert {tensor.role for tensor in gru} == {"weight"}
    assert "ONNX Runtime has no integer GRU" in gru[0].why
    source, weight = explanation["tags"].quantized
    assert (source.descriptor, source.range) == ("dynamic uint8 affine per tensor", "each tensor's own")
    assert weight.descriptor == "int8 per channel (axis 0)"
    assert targets(converted(tagger(), tokens())).count(DYNAMIC_LSTM_LAYER) == 2


def test_a_convolution_stays_in_float_and_says_why_unless_a_rule_asks_for_integer_weights() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 4)).eval(), torch.randn(2, 3, 6, 6)
    assert "integer convolution is slower" in fxq.explain(fxq.prepare(model, x, "dynamic"))["0"].reason
    asked = fxq.recipe("dynamic").with_rules(("0", fxq.QConfig()))
    assert converted(model, x, recipe=asked).get_buffer("0.weight").dtype == torch.int8


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return torch.matmul(y, y.t())


def test_a_product_of_two_activations_stays_in_float_unless_a_rule_asks_for_it() -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    prepared = fxq.prepare(Product().eval(), x, "dynamic")
    assert "faster in float; a rule that names it" in fxq.explain(prepared)["matmul"].reason
    assert DYNAMIC_MATMUL not in targets(fxq.convert(prepared))
    asked = fxq.prepare(Product().eval(), x, fxq.recipe("dynamic").with_rules(("matmul", fxq.QConfig())))
    found = fxq.convert(asked)
    assert DYNAMIC_MATMUL in targets(found)
    fxq.calibrate_weights(asked)
    torch.testing.assert_close(found(x), asked(x), rtol=1e-5, atol=1e-5)  # one order of sums against another


class HalfByHand(Product):
    def __init__(self) -> None:
        super().__init__()
        self.quantizer = fxq.TensorQuantizer(fxq.QuantDescriptor(amax=3.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(self.quantizer(x), self.fc(x).t())


def test_a_product_with_an_operand_of_fixed_range_stays_as_it_is() -> None:
    recipe = fxq.recipe("dynamic").with_rules(("matmul", fxq.QConfig()))
    found = converted(HalfByHand(), torch.randn(4, 8), recipe=recipe)
    assert DYNAMIC_MATMUL not in targets(found)
    assert found.get_buffer("quantizer.scale").shape == ()


def test_a_product_with_a_stored_matrix_is_a_linear_layer() -> None:
    explanation = fxq.explain(fxq.prepare(encoder(), tokens(), "dynamic"))
    source, weight = explanation["matmul_2"].quantized
    assert (source.role, weight.role) == ("input", "weight")
    assert weight.descriptor == "int8 per channel (axis 1)"
    found = converted(encoder(), tokens())
    assert targets(found).count(DYNAMIC_LINEAR) == 6
    assert found.get_buffer("matmul_2_weight_quantizer.transposed").dtype == torch.int8


def test_tied_weights_and_repeated_calls_store_their_codes_once() -> None:
    found = converted(encoder(is_tied=True), tokens())
    tables = [name for name, value in found.named_buffers() if value.dtype == torch.int8 and value.shape == (50, 64)]
    assert tables == ["embedding.weight"]


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(512, 64), nn.Linear(64, 512, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.embedding(tokens)))
        return logits


def test_a_large_table_that_is_also_the_head_is_stored_once_in_the_file_and_multiplied_as_integers(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.onnx"
    found = converted(LanguageModel(), tokens())
    fxq.export_onnx(found, path)
    stored = onnx.load(path).graph.initializer
    assert [list(item.dims) for item in stored if item.data_type == onnx.TensorProto.INT8] == [[512, 64]]
    assert count_kinds(get_runtime("onnxruntime").executed_ops(path))["DynamicQuantizeMatMul"] == 1
    with torch.no_grad():
        assert snr_db(found(tokens()), run(path, tokens())) > 60  # one matrix product: the order of float sums


def test_a_layer_that_a_rule_leaves_in_float_is_computed_in_float() -> None:
    found = converted(encoder(), tokens(), recipe=fxq.recipe("dynamic").with_rules(("up", None), ("head", None)))
    assert targets(found).count(DYNAMIC_LINEAR) == 4


def test_it_works_without_example_inputs_and_in_bfloat16() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    x = torch.randn(3, 16)
    found = fxq.quantize(model, recipe="dynamic")
    with torch.no_grad():
        assert snr_db(model(x), found(x)) > 25
        model, x = model.bfloat16(), x.bfloat16()
        assert fxq.quantize(model, recipe="dynamic")(x).dtype == torch.bfloat16


def test_a_model_can_be_trained_with_it() -> None:
    prepared = fxq.prepare(
        nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), None, "dynamic", qat=True
    )
    optimizer = torch.optim.SGD(prepared.parameters(), 0.1)
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(5):
        loss = (prepared(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    found = fxq.convert(prepared)  # the weights are fitted as they are after training
    with torch.no_grad():
        torch.testing.assert_close(found(x), prepared(x), rtol=1e-4, atol=1e-4)
