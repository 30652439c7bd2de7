"""What has no integer form is named, with its module, its line, and what has one."""

import pytest
import torch
from integer_models import Between, Call, converted
from torch import nn

import fxq


def integer(inside: nn.Module, recipe: str | fxq.Recipe = "onnxruntime") -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    fxq.to_integer(converted(Between(inside, 4), x, recipe))


def test_an_operation_without_an_integer_form_is_named() -> None:
    with pytest.raises(fxq.GraphError) as error:
        integer(nn.GroupNorm(2, 4))
    message = str(error.value)
    assert "node 'inside' (inside; " in message
    assert "'group_norm' has no integer form" in message
    assert "Integer forms have adaptive_avg_pool, add, avg_pool, batch_norm, cat," in message
    assert "fxq.integer_form adds one" in message


def test_a_layer_that_a_rule_leaves_in_float_is_named() -> None:
    recipe = fxq.recipe("onnxruntime").with_rules(("inside", None))
    with pytest.raises(
        fxq.GraphError, match=r"node 'inside' \(inside; .* its weight is not quantized, or its input is not"
    ):
        integer(nn.Conv2d(4, 4, 1), recipe)


def test_a_function_per_channel_is_no_table() -> None:
    with pytest.raises(fxq.GraphError, match="it has a parameter for each channel"):
        integer(nn.PReLU(4))


def test_dividing_by_a_tensor_is_refused() -> None:
    with pytest.raises(fxq.GraphError, match="it divides by a tensor"):
        integer(Call(lambda x: x / (torch.nn.functional.max_pool2d(x, 3, 1, 1) + 9)))


def test_a_mode_of_resizing_that_overshoots_is_refused() -> None:
    with pytest.raises(fxq.GraphError, match="mode 'bicubic' adds up weights of both signs"):
        integer(nn.Upsample(scale_factor=2, mode="bicubic"))


@pytest.mark.parametrize(
    ("recipe", "reason"), [("weight_only", "no activation is quantized"), ("dynamic", "dynamic_linear")]
)
def test_a_recipe_without_calibrated_ranges_is_refused(recipe: str, reason: str) -> None:
    x = torch.randn(2, 8)
    qdq = fxq.quantize(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)).eval(), recipe=recipe, example_inputs=x)
    with pytest.raises(fxq.GraphError, match=f'{reason}.*such as "onnxruntime"'):
        fxq.to_integer(qdq)


def test_other_codes_than_8_bit_integers_are_refused() -> None:
    floats = fxq.QuantDescriptor(num_bits=(4, 3))
    recipe = fxq.recipe("tensorrt").replace(default=fxq.QConfig(activation=floats, weight=floats))
    with pytest.raises(fxq.GraphError, match="makes float8_e4m3fn codes, and integer forms are for int8 and uint8"):
        integer(nn.ReLU(), recipe)


def test_a_model_that_is_not_converted_is_refused() -> None:
    x = torch.randn(2, 3, 6, 6)
    prepared = fxq.prepare(Between(nn.ReLU(), 4).eval(), x)
    with pytest.raises(fxq.StageError, match=r"to_integer takes the result of fxq.convert"):
        fxq.to_integer(prepared)


def test_an_integer_model_is_refused_where_a_converted_one_is_meant() -> None:
    x = torch.randn(2, 3, 6, 6)
    integers = fxq.to_integer(converted(Between(nn.ReLU(), 4), x))
    with pytest.raises(fxq.StageError, match="got a model at stage 'integer'"):
        fxq.to_integer(integers)


def test_compare_and_passes_leave_integer_models_alone() -> None:
    x = torch.randn(2, 3, 6, 6)
    model = Between(nn.ReLU(), 4).eval()
    with pytest.raises(fxq.StageError, match="at stage 'integer': give it the converted model"):
        fxq.compare(model, fxq.to_integer(converted(model, x)), [x])

    class TooLate(fxq.Pass):
        stage = fxq.Stage.INTEGER

    with pytest.raises(fxq.PluginError, match=r"of stage 'integer', which no pass makes: .*fxq.integer_form"):
        fxq.register_pass("too_late")(TooLate)


def test_a_form_that_computes_something_else_is_found_out() -> None:
    class Halved(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 2

    fxq.register_kind("test_halved", Halved)

    @fxq.integer_form("test_halved")
    class Wrong:
        keeps_grid = True

        def why_not(self, node: torch.fx.Node) -> str | None:
            return None

        def codes(self, writer: fxq.integer.Writer, node: torch.fx.Node, grid: fxq.integer.Grid) -> torch.fx.Node:
            return writer.codes(node.all_input_nodes[0], grid)

    with pytest.raises(fxq.GraphError, match="the integers compute another 'output' than the converted model"):
        integer(Halved())
