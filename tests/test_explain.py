"""explain: every operation says how it is quantized and by which pass, or why it is not."""

from dataclasses import replace

import pytest
import torch
from support.small import images, residual
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq

LEFT = fxq.recipe("tensorrt").with_rules(("fc", None))


@pytest.fixture(scope="module")
def calibrated() -> GraphModule:
    prepared = fxq.prepare(residual(), images(2), LEFT)
    fxq.calibrate(prepared, images(8).split(4))
    return prepared


def test_every_operation_has_a_row_with_tensors_or_a_reason(calibrated: GraphModule) -> None:
    explanation = fxq.explain(calibrated)
    operations = [
        node.name
        for node in calibrated.graph.nodes
        if node.op not in ("placeholder", "output") and not node.name.endswith("quantizer")
    ]
    assert [node.node for node in explanation.nodes] == operations
    assert all(bool(node.reason) != node.is_quantized for node in explanation.nodes)


def test_an_operation_whose_output_alone_is_quantized_says_so() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 4)).eval()
    softmax = fxq.explain(fxq.prepare(model, torch.zeros(2, 4), "onnxruntime"))["1"]
    assert not softmax.is_quantized
    assert softmax.reason == (
        "reads floats, and its output is quantized where it is read: onnxruntime runs softmax with a quantized output "
        "(plan_ops)"
    )


def test_a_quantized_layer_says_how_by_which_pass_and_why(calibrated: GraphModule) -> None:
    conv = fxq.explain(calibrated)["conv1"]
    source, weight = conv.quantized
    amax = float(calibrated.conv1_input_quantizer.amax)
    assert (source.role, source.position, source.quantizer) == ("input", 0, "conv1_input_quantizer")
    assert source.descriptor == "int8 per tensor"
    assert source.range == f"[{-amax:.4g}, {amax:.4g}]"
    assert (source.pass_name, source.why) == ("plan_ops", "tensorrt runs conv on quantized inputs")
    assert (weight.role, weight.position, weight.pass_name) == ("weight", None, "plan_ops")
    assert weight.descriptor == "int8 per channel (axis 0)"


def test_a_residual_add_says_which_side_and_what_absorbs_it(calibrated: GraphModule) -> None:
    add = fxq.explain(calibrated)["add"]
    assert [(tensor.role, tensor.position, tensor.pass_name) for tensor in add.quantized] == [
        ("residual", 1, "plan_residual_adds")
    ]
    assert "conv2" in add.quantized[0].why


def test_a_layer_left_in_float_names_the_rule(calibrated: GraphModule) -> None:
    assert fxq.explain(calibrated)["fc"].reason == "rule ('fc', None) leaves it in float"


def test_a_layer_left_in_float_names_the_rule_also_where_its_input_is_quantized_anyway() -> None:
    """ONNX Runtime quantizes what an operation puts out, so a float layer may read a quantized tensor."""
    recipe = fxq.recipe("onnxruntime").with_rules(("1", None))
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)).eval()
    layer = fxq.explain(fxq.prepare(model, images(2), recipe))["1"]
    assert "rule ('1', None)" in layer.reason
    assert {tensor.role for tensor in layer.quantized} == {"output"}


def test_a_quantized_output_of_the_model_has_a_row() -> None:
    explanation = fxq.explain(fxq.prepare(nn.Sequential(nn.Conv2d(1, 4, 3)).eval(), images(2), "onnxruntime"))
    assert explanation["output"].quantized[0].quantizer == "0_output_quantizer"


def test_ranges_are_shown_only_once_there_are_any() -> None:
    prepared = fxq.prepare(residual(), images(2))
    shown = {tensor.range for node in fxq.explain(prepared).nodes for tensor in node.quantized}
    assert shown == {"not calibrated"}
    fxq.calibrate_weights(prepared)
    assert fxq.explain(prepared)["fc"].quantized[1].range.startswith("±")


def test_a_converted_model_keeps_its_explanation(calibrated: GraphModule) -> None:
    found = fxq.explain(fxq.convert(calibrated))
    assert replace(found, quality=None) == fxq.explain(calibrated)
    assert str(found.quality) in str(found)


def test_data_for_programs_is_plain_and_counts_by_role(calibrated: GraphModule) -> None:
    data = fxq.explain(calibrated).to_dict()
    assert data["target"] == "tensorrt"
    assert data["counts"] == {"input": 2, "residual": 1, "weight": 2}
    assert data["nodes"][0]["quantized"][0]["quantizer"] == "conv1_input_quantizer"


@torch.fx.wrap
def scaled_product(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight[0] * 0.5


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.expit(scaled_product(x, self.weight))


def test_a_wrapped_function_says_that_nobody_looked_inside() -> None:
    with pytest.warns(UserWarning, match="nothing was quantized: with recipe 'dynamic'"):
        explanation = fxq.explain(fxq.prepare(Wrapped().eval(), torch.ones(2, 4), "dynamic"))
    assert explanation["scaled_product"].reason.startswith("torch.fx.wrap makes it one operation")
    assert explanation.nodes[1].reason.startswith(
        "no pass knows this operation, and it stays in float: fxq.register_kind"
    )


class Compared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x.softmax(-1), x.erf())


def test_a_target_is_said_to_run_only_what_is_known_to_it() -> None:
    with pytest.warns(UserWarning, match="nothing was quantized"):
        explanation = fxq.explain(fxq.prepare(Compared().eval(), torch.ones(2, 4)))
    reasons = {node.node: node.reason for node in explanation.nodes}
    assert reasons["gt"] == "its result is bool; floats alone are quantized"
    assert reasons["softmax"] == "tensorrt runs it in float"
    assert reasons["erf"] == "no pass knows this operation, and it stays in float"


def test_a_node_that_is_not_there_is_a_key_error(calibrated: GraphModule) -> None:
    with pytest.raises(KeyError, match="nowhere"):
        fxq.explain(calibrated)["nowhere"]


def test_the_table_fits_160_columns_and_holds_every_word(calibrated: GraphModule) -> None:
    text = str(fxq.explain(calibrated))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 160
    assert all(line == line.rstrip() for line in lines)
    assert lines[0] == "tensorrt: 2 input, 1 residual, 2 weight"
    assert lines[1] == "2 of 3 convolutions and linear layers in int8; float: fc"
    fc = next(line for line in lines if "│ fc " in line)
    assert "float" in fc
    assert "rule ('fc', None) leaves it in float" in fc


def test_words_in_brackets_are_no_markup(calibrated: GraphModule) -> None:
    explanation = fxq.explain(calibrated)
    marked = replace(explanation, nodes=(replace(explanation["fc"], reason="leave [red] alone"),))
    assert "leave [red] alone" in str(marked)


def test_explaining_changes_nothing(calibrated: GraphModule) -> None:
    before = calibrated(images(4))
    str(fxq.explain(calibrated))
    torch.testing.assert_close(calibrated(images(4)), before, rtol=0, atol=0)
