from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

import fxq
from fxq.graph import graph_text
from fxq.graph.trace import trace
from fxq.nn import WeightQuantized
from fxq.testing import assert_rewrites
from fxq_passes import InsertQuantizers, PlanOps

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
INT4 = fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(4, 8, 3, padding=1), nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.up(self.conv(x)).mean((2, 3)))


def test_layers_with_weights_are_planned_and_swapped_and_compute_what_they_did() -> None:
    record = assert_rewrites(
        [PlanOps(), InsertQuantizers()],
        model=Net(),
        inputs=X,
        before="""
            x = input
            conv = Conv2d[conv](x)
            up = ConvTranspose2d[up](conv)
            mean = .mean(up, (2, 3))
            fc = Linear[fc](mean)
            return fc
        """,
        after="""
            x = input
            conv_input_quantizer = TensorQuantizer[conv_input_quantizer](x)
            conv = QuantConv2d[conv](conv_input_quantizer)  # input 0: int8 per tensor
            up_input_quantizer = TensorQuantizer[up_input_quantizer](conv)
            up = QuantConvTranspose2d[up](up_input_quantizer)  # input 0: int8 per tensor
            mean = .mean(up, (2, 3))
            fc_input_quantizer = TensorQuantizer[fc_input_quantizer](mean)
            fc = QuantLinear[fc](fc_input_quantizer)  # input 0: int8 per tensor
            return fc
        """,
    )
    swapped = {entry.node: entry.text for entry in record.of("insert_quantizers", "edit") if "weight" in entry.text}
    assert swapped == {
        "conv": "weight: int8 per channel (axis 0)",
        "up": "weight: int8 per channel (axis 1)",
        "fc": "weight: int8 per channel (axis 0)",
    }


class Subclass(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class ReadsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.conv.weight.mean()


LEFT: dict[str, tuple[nn.Module, dict[str, Any], tuple[Any, ...], str]] = {
    "subclass": (
        nn.Sequential(NonDynamicallyQuantizableLinear(6, 4)), {}, (), "NonDynamicallyQuantizableLinear is a subclass",
    ),
    "by hand": (nn.Sequential(fxq.nn.QuantConv2d(4, 4, 1)), {}, (), "already quantized by hand"),
    "read elsewhere": (ReadsWeight(), {}, (), "'conv.weight' is also read outside of it"),
    "rule by glob": (nn.Sequential(nn.Conv2d(4, 4, 1)), {}, (("0", None),), "rule ('0', None) leaves it in float"),
    "rule by type": (nn.Sequential(nn.Conv2d(4, 4, 1)), {}, ((nn.Conv2d, None),), "rule ('Conv2d', None) leaves it"),
    "rule by container": (
        nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1))), {}, (("0", None),), "rule ('0', None) leaves it",
    ),
    "few channels": (
        nn.Sequential(nn.Conv2d(4, 16, 1)), {"min_channels": 16}, (), "4 channels are fewer than min_channels=16",
    ),
    "depthwise": (
        nn.Sequential(nn.Conv2d(4, 4, 1, groups=4)), {"depthwise": False}, (), "depthwise=False leaves depthwise",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "options", "rules", "why"), LEFT.values(), ids=LEFT)
def test_a_layer_is_left_alone(model: nn.Module, options: dict[str, Any], rules: tuple[Any, ...], why: str) -> None:
    text = graph_text(trace(model.eval(), (X,)))
    record = assert_rewrites([PlanOps(**options), InsertQuantizers()], model=model, inputs=X, after=text, rules=rules)
    assert record.of("plan_ops", "skip")[0].text.startswith(why)


def test_a_subclass_is_traced_through_and_its_own_forward_counts() -> None:
    model = nn.Sequential(Subclass(4, 4, 1)).eval()
    prepared = fxq.prepare(model, X, verify=True)
    for quantizer in prepared.modules():
        if isinstance(quantizer, fxq.TensorQuantizer):
            quantizer.disable()
    torch.testing.assert_close(prepared(X), model(X), rtol=1e-6, atol=1e-6)  # one convolution, another kernel


def test_a_depthwise_or_small_convolution_is_swapped_by_default() -> None:
    prepared = fxq.prepare(nn.Sequential(nn.Conv2d(4, 4, 1, groups=4)).eval(), X)
    assert isinstance(prepared.get_submodule("0"), WeightQuantized)


def descriptors(recipe: fxq.Recipe) -> dict[str, int | None]:
    """Return the width of each weight of Net, None for one in float."""
    prepared = fxq.prepare(Net().eval(), X, recipe=recipe)
    modules = {path: prepared.get_submodule(path) for path in ("conv", "up", "fc")}
    return {
        path: module.weight_quantizer.descriptor.num_bits if isinstance(module, WeightQuantized) else None
        for path, module in modules.items()
    }


def test_the_last_rule_that_matches_wins() -> None:
    recipe = fxq.recipe("tensorrt").with_rules(
        ("*", INT4),
        (nn.Linear, None),
        (lambda path, module: isinstance(module, nn.ConvTranspose2d), fxq.QConfig()),
    )
    assert descriptors(recipe) == {"conv": 4, "up": 8, "fc": None}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.c.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


def test_weights_tied_between_modules_get_one_quantizer() -> None:
    x = X[:, :, 0, 0]
    prepared = fxq.prepare(Tied().eval(), x, recipe=fxq.recipe("tensorrt").with_rules(("c", INT4)))
    a, b, c = (prepared.get_submodule(path) for path in "abc")
    assert isinstance(a, WeightQuantized)
    assert isinstance(b, WeightQuantized)
    assert isinstance(c, WeightQuantized)
    assert a.weight is b.weight is c.weight
    assert a.weight_quantizer is b.weight_quantizer
    assert c.weight_quantizer is not a.weight_quantizer  # another descriptor
    assert "which is also that of 'a'" in fxq.explain(prepared)["b"].quantized[-1].why


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.conv(x)))


def test_a_module_called_twice_is_swapped_once() -> None:
    record = assert_rewrites(
        [PlanOps(), InsertQuantizers()],
        model=Twice(),
        inputs=X,
        after="""
            x = input
            conv_input_quantizer = TensorQuantizer[conv_input_quantizer](x)
            conv = QuantConv2d[conv](conv_input_quantizer)  # input 0: int8 per tensor
            relu = relu(conv)
            conv_input_quantizer_1 = TensorQuantizer[conv_input_quantizer_1](relu)
            conv_1 = QuantConv2d[conv](conv_input_quantizer_1)  # input 0: int8 per tensor
            return conv_1
        """,
    )
    assert len([entry for entry in record.of("insert_quantizers", "edit") if entry.text.startswith("weight")]) == 1


def test_one_module_under_two_names_keeps_one_weight_and_one_quantizer() -> None:
    layer = nn.Conv2d(4, 4, 1)
    prepared = fxq.prepare(nn.Sequential(layer, nn.ReLU(), layer).eval(), X)
    layers = {module for module in prepared.modules() if isinstance(module, WeightQuantized)}
    assert len({id(layer.weight) for layer in layers}) == 1
    assert len({layer.weight_quantizer for layer in layers}) == 1
    assert fxq.explain(prepared).counts == {"input": 2, "weight": 2}


def test_a_descriptor_that_the_target_cannot_run_is_an_error_that_names_the_rule() -> None:
    three = fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=3, axis=0))
    with pytest.raises(
        fxq.TargetError, match=r"'up' \(rule \('up', QConfig\)\): target 'tensorrt' has no 3-bit weights"
    ):
        fxq.prepare(Net().eval(), X, recipe=fxq.recipe("tensorrt").with_rules(("up", three)))


@pytest.mark.parametrize(
    "layer",
    [
        fxq.TensorQuantizer(fxq.QuantDescriptor(axis=1)),
        fxq.nn.QuantLinear(6, 3, quant_desc_input=fxq.QuantDescriptor(axis=1)),
    ],
    ids=["quantizer", "layer"],
)
def test_activations_per_channel_by_hand_are_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(fxq.TargetError, match=r"^'0' \(quantized by hand\): .* per tensor; use axis=None, got 1"):
        fxq.prepare(nn.Sequential(layer).eval(), X, "onnxruntime")


class WeightByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 6))
        self.quantizer = fxq.TensorQuantizer(fxq.QuantDescriptor(axis=0))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.quantizer(self.weight * 2)


def test_a_weight_per_channel_by_hand_is_taken() -> None:
    prepared = fxq.prepare(WeightByHand().eval(), X, "tensorrt")
    assert prepared.quantizer.axis == 0
