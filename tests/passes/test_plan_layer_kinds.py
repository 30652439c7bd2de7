"""plan_ops: inside of which kinds of modules it plans for which target, and what a rule adds to them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq import QConfig, QuantDescriptor
from fxq.nn import Quantized

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(5, 5, 1)
        self.lstm, self.gru = nn.LSTM(8, 8, batch_first=True), nn.GRU(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.pool = nn.MaxPool1d(2)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gru(self.lstm(self.conv(x))[0])[0]
        return self.fc(self.pool(self.attention(x, x, x, need_weights=False)[0]))


def prepared(recipe: str, *rules: Any) -> GraphModule:
    return fxq.prepare(Everything().eval(), X, fxq.recipe(recipe).with_rules(*rules), verify=True)


def swapped(gm: GraphModule) -> set[str]:
    return {path for path, module in gm.named_modules() if isinstance(module, Quantized)}


KINDS = {
    "tensorrt": {"conv", "attention", "fc"},
    "onnxruntime": {"conv", "attention", "fc"},
    "openvino": {"conv", "attention", "fc"},
    "dynamic": {"lstm", "gru", "attention", "fc"},
    "weight_only": {"conv", "lstm", "gru", "attention", "fc"},
}


@pytest.mark.parametrize(("recipe", "expected"), KINDS.items(), ids=KINDS)
def test_a_target_says_which_kinds_are_swapped(recipe: str, expected: set[str]) -> None:
    assert swapped(prepared(recipe)) == expected


def test_a_rule_that_names_a_module_swaps_it_too() -> None:
    assert swapped(prepared("dynamic", ("conv", QConfig()))) == KINDS["dynamic"] | {"conv"}
    assert swapped(prepared("tensorrt", (nn.LSTM, QConfig()))) == KINDS["tensorrt"] | {"lstm"}
    pooled = prepared("tensorrt", ("pool", QConfig()))
    assert swapped(pooled) == KINDS["tensorrt"] | {"pool"}
    assert fxq.explain(pooled)["pool"].quantized[0].descriptor == "int8 per tensor"


def test_a_rule_for_a_part_of_the_model_swaps_only_what_it_has_a_descriptor_for() -> None:
    assert swapped(prepared("tensorrt", ("*", QConfig()))) == KINDS["tensorrt"]
    weights = QConfig(weight=QuantDescriptor(axis=0))
    assert swapped(prepared("tensorrt", ("*", weights))) == {"conv", "lstm", "gru", "attention", "fc"}
    everything = QConfig(QuantDescriptor(), QuantDescriptor(axis=0))
    assert "pool" in swapped(prepared("tensorrt", ("*", everything)))


def test_a_kind_whose_inputs_stay_in_float_gets_integer_weights_alone() -> None:
    lstm = fxq.explain(prepared("tensorrt", ("lstm", QConfig())))["lstm"].quantized
    assert {tensor.role for tensor in lstm} == {"weight"}
    assert lstm[0].why == "its weight; computed in float"


def test_a_module_without_weights_is_left_alone_where_the_target_has_no_use_for_it() -> None:
    reasons = {
        recipe: fxq.explain(prepared(recipe, ("pool", QConfig())))["pool"].reason
        for recipe in ("dynamic", "weight_only")
    }
    assert reasons == {
        "dynamic": "dynamic has no integer max_pool",
        "weight_only": "it has no weight, and weight_only leaves activations in float",
    }


def test_the_products_of_an_attention_are_quantized_where_the_target_multiplies_integers() -> None:
    inside = {
        recipe: [tensor.quantizer for tensor in fxq.explain(prepared(recipe))["attention"].quantized]
        for recipe in ("tensorrt", "dynamic", "weight_only")
    }
    assert "attention._softmax_quantizer" in inside["tensorrt"]
    assert "attention._softmax_quantizer" not in inside["dynamic"]
    assert "attention._query_quantizer" in inside["dynamic"]
    assert inside["weight_only"] == ["attention._in_proj_weight_quantizer", "attention._out_proj_weight_quantizer"]


def test_a_weight_quantizer_that_is_switched_off_by_hand_stays_off() -> None:
    layer = fxq.nn.QuantLinear(8, 4)
    layer.weight_quantizer.disable()
    gm = fxq.prepare(nn.Sequential(layer).eval(), X, "tensorrt")
    found = gm.get_submodule("0")
    assert isinstance(found, fxq.nn.QuantLinear)
    assert not found.weight_quantizer.is_enabled
