"""What a target cannot express is refused at prepare, with the rule, the node, and what to use instead."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq import QConfig, QuantDescriptor
from fxq.nn import WeightQuantized

E4M3 = (4, 3)
DYNAMIC = QuantDescriptor(unsigned=True, symmetric=False, calibrator="dynamic")
BLOCKS = QuantDescriptor(num_bits=4, axis=0, block_size=32)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


def prepare(recipe: str, path: str, config: QConfig) -> GraphModule:
    return fxq.prepare(Net().eval(), torch.randn(1, 3, 6, 6), fxq.recipe(recipe).with_rules((path, config)))


REFUSED: dict[str, tuple[str, str, QConfig, str]] = {
    "seven bits": (
        "tensorrt", "fc", QConfig(QuantDescriptor(num_bits=7)), "no 7-bit activations; use num_bits=8 or leave",
    ),
    "activation per channel": (
        "onnxruntime", "fc", QConfig(QuantDescriptor(axis=1, unsigned=True, symmetric=False)),
        "quantizes activations per tensor; use axis=None, got 1",
    ),
    "affine for tensorrt": (
        "tensorrt", "conv", QConfig(QuantDescriptor(symmetric=False)), "takes signed symmetric activations only",
    ),
    "dynamic for tensorrt": ("tensorrt", "fc", QConfig(DYNAMIC), "needs ranges that are known before it runs"),
    "static for dynamic": (
        "dynamic", "fc", QConfig(QuantDescriptor(unsigned=True, symmetric=False)),
        "measures each activation as it runs; use calibrator=\"dynamic\", got 'max'",
    ),
    "signed dynamic": (
        "dynamic", "fc", QConfig(QuantDescriptor(calibrator="dynamic")), "use unsigned=True and symmetric=False",
    ),
    "activation for weight_only": ("weight_only", "fc", QConfig(DYNAMIC), "leaves activations in float"),
    "float8 for onnxruntime": (
        "onnxruntime", "fc", QConfig(QuantDescriptor(num_bits=E4M3)), "has no float8 activations; use num_bits=8",
    ),
    "float8 weight for openvino": (
        "openvino", "fc", QConfig(weight=QuantDescriptor(num_bits=E4M3, axis=0)),
        "has no float8 weights; use num_bits=4 or 8",
    ),
    "float8 times int8": (
        "tensorrt", "fc", QConfig(weight=QuantDescriptor(num_bits=E4M3, axis=0)),
        "give activation and weight one format",
    ),
    "affine weight": (
        "weight_only", "fc", QConfig(weight=QuantDescriptor(symmetric=False)), "takes signed symmetric weights only",
    ),
    "dynamic weight": (
        "weight_only", "fc", QConfig(weight=QuantDescriptor(calibrator="dynamic")), "a weight is known",
    ),
    "blocks for tensorrt": ("tensorrt", "fc", QConfig(weight=BLOCKS), "has no weights in blocks; use axis=0 without"),
    "blocks of 48": (
        "weight_only", "fc", QConfig(weight=BLOCKS.replace(block_size=48)),
        "has no blocks of 48; use block_size=32 or 64 or 128",
    ),
    "blocks of 8 bits": (
        "weight_only", "fc", QConfig(weight=QuantDescriptor(axis=0, block_size=32)), "has no blocks of 8-bit weights",
    ),
    "blocks on a convolution": (
        "weight_only", "conv", QConfig(weight=BLOCKS), "weights have blocks, and this is a conv; give it a rule",
    ),
    "five bits": ("weight_only", "fc", QConfig(weight=QuantDescriptor(num_bits=5)), "no 5-bit weights; use num_bits=4"),
    "four bits for dynamic": (
        "dynamic", "fc", QConfig(weight=QuantDescriptor(num_bits=4)), "no 4-bit weights; use num_bits=8",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("recipe", "path", "config", "message"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_with_rule_node_and_cure(recipe: str, path: str, config: QConfig, message: str) -> None:
    with pytest.raises(fxq.TargetError, match=re.escape(message)) as error:
        prepare(recipe, path, config)
    assert str(error.value).startswith(f"'{path}' (rule ('{path}', QConfig)): ")


ALLOWED: dict[str, tuple[str, str, QConfig]] = {
    "float8 for tensorrt": (
        "tensorrt", "fc", QConfig(QuantDescriptor(num_bits=E4M3), QuantDescriptor(num_bits=E4M3, axis=0)),
    ),
    "dynamic, written out": ("dynamic", "fc", QConfig(DYNAMIC, QuantDescriptor())),
    "blocks": ("weight_only", "fc", QConfig(weight=BLOCKS)),
    "four bits on a convolution": ("weight_only", "conv", QConfig(weight=QuantDescriptor(num_bits=4))),
}  # fmt: skip


@pytest.mark.parametrize(("recipe", "path", "config"), ALLOWED.values(), ids=ALLOWED)
def test_what_a_target_can_express_is_taken(recipe: str, path: str, config: QConfig) -> None:
    layer = prepare(recipe, path, config).get_submodule(path)
    assert isinstance(layer, WeightQuantized)
    wanted = config.weight or QuantDescriptor()
    assert layer.weight_quantizer.num_bits == wanted.num_bits


def test_the_default_of_a_recipe_is_named_where_no_rule_is_to_blame() -> None:
    recipe = fxq.recipe("tensorrt").replace(default=QConfig(weight=QuantDescriptor(num_bits=7, axis=0)))
    with pytest.raises(fxq.TargetError, match=r"^'conv' \(the default of the recipe\): target 'tensorrt' has no 7-bit"):
        fxq.prepare(Net().eval(), None, recipe)


class ByHand(nn.Module):
    def __init__(self, descriptor: QuantDescriptor) -> None:
        super().__init__()
        self.quantizer, self.fc = fxq.TensorQuantizer(descriptor), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.quantizer(x))


def linear_by_hand(weight_bits: int) -> nn.Module:
    weight = QuantDescriptor(num_bits=weight_bits, axis=0)
    return nn.Sequential(fxq.nn.QuantLinear(4, 4, quant_desc_input=DYNAMIC, quant_desc_weight=weight))


CONVERTED: dict[str, tuple[str, Callable[[], nn.Module], type[fxq.FxqError], str]] = {
    "on a static target": (
        "tensorrt", lambda: ByHand(DYNAMIC), fxq.TargetError, "target 'tensorrt' cannot: quantizer. Give them another",
    ),
    "before something else": (
        "dynamic", lambda: ByHand(DYNAMIC), fxq.GraphError,
        "quantizer 'quantizer' measures its range as it runs, and 'relu'",
    ),
    "of another format": (
        "dynamic", lambda: ByHand(QuantDescriptor(calibrator="dynamic")), fxq.GraphError,
        "for unsigned affine 8-bit codes per tensor only",
    ),
    "times an int16 weight": (
        "dynamic", lambda: linear_by_hand(16), fxq.GraphError, "goes with a linear layer of symmetric int8 weights",
    ),
    "of a pooling": (
        "dynamic", lambda: nn.Sequential(fxq.nn.QuantMaxPool2d(2, quant_desc_input=DYNAMIC)), fxq.GraphError,
        "for which it has no integer form",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("recipe", "make", "error", "message"), CONVERTED.values(), ids=CONVERTED)
def test_a_dynamic_quantizer_placed_by_hand_where_nothing_takes_it_is_refused_by_convert(
    recipe: str, make: Callable[[], nn.Module], error: type[fxq.FxqError], message: str
) -> None:
    prepared = fxq.prepare(make().eval(), None, recipe)
    with pytest.raises(error, match=re.escape(message)):
        fxq.convert(prepared)


def test_a_dynamic_linear_layer_placed_by_hand_becomes_one_operator() -> None:
    converted = fxq.convert(fxq.prepare(linear_by_hand(8).eval(), None, "dynamic"))
    assert [str(node.target) for node in converted.graph.nodes if node.op == "call_function"] == [
        "fxq.dynamic_linear.default"
    ]
