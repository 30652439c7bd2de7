"""Targets of one's own: what a short one means, and what is refused, with the field and a suggestion."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq import Derived, FileRules, Fixed, Formats, OpRule, QuantDescriptor, Same, Target

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
UINT8 = QuantDescriptor(unsigned=True, symmetric=False)
CONV = OpRule("conv", inputs=True, weight=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.LayerNorm(6), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc(self.norm(self.conv(x)).mean((2, 3))))


def explained(target: Target) -> dict[str, list[str]]:
    """Return what is quantized of each operation of Net."""
    found = fxq.explain(fxq.prepare(Net().eval(), X, fxq.Recipe(target=target)))
    return {
        node.path: [f"{tensor.role} {tensor.descriptor}" for tensor in node.quantized]
        for node in found.nodes
        if node.quantized
    }


def test_a_short_target_means_int8_symmetric_with_weights_per_channel() -> None:
    assert explained(Target("mine", (CONV,))) == {"conv": ["input int8 per tensor", "weight int8 per channel (axis 0)"]}


def test_rows_for_one_kind_add_up_and_kinds_may_be_one_word_or_several() -> None:
    split = Target("mine", (OpRule("conv", inputs=True), OpRule(["conv"], weight=True)))
    assert explained(split) == explained(Target("mine", (CONV,)))
    assert OpRule({"linear", "conv"}).kinds == ("conv", "linear")


def test_a_row_has_descriptors_of_its_own() -> None:
    rows = (
        OpRule("conv", inputs=True, weight=True),
        OpRule("linear", inputs=QuantDescriptor(num_bits=16), weight=QuantDescriptor(axis=None)),
        OpRule("sigmoid", output=UINT8),
    )
    target = Target("mine", rows, formats=Formats(activation_bits={8, 16}))
    assert explained(target) == {
        "conv": ["input int8 per tensor", "weight int8 per channel (axis 0)"],
        "fc": ["input int16 per tensor", "weight int8 per tensor"],
        "output": ["output uint8 affine per tensor"],
    }


def test_a_rule_of_the_recipe_and_its_default_go_before_the_row() -> None:
    target = Target("mine", (OpRule("linear", inputs=QuantDescriptor(num_bits=16), weight=True),),
                    formats=Formats(activation_bits={8, 16}))  # fmt: skip
    recipe = fxq.Recipe(target=target, default=fxq.QConfig(activation=UINT8))
    prepared = fxq.prepare(Net().eval(), X, recipe)
    assert fxq.explain(prepared)["fc"].quantized[0].descriptor == "uint8 affine per tensor"
    prepared = fxq.prepare(Net().eval(), X, recipe.with_rules(("fc", fxq.QConfig(activation=QuantDescriptor()))))
    assert fxq.explain(prepared)["fc"].quantized[0].descriptor == "int8 per tensor"


def test_a_row_without_slots_says_why_in_explain() -> None:
    target = Target("mine", (CONV, OpRule("linear", why="it has no integer multiplier")))
    found = fxq.explain(fxq.prepare(Net().eval(), X, fxq.Recipe(target=target)))
    assert found["fc"].reason == "it has no integer multiplier"
    assert found["norm"].reason == "mine runs it in float"


def test_conditions_decide_where_inputs_are_quantized() -> None:
    after_conv = Target("mine", (CONV, OpRule("layer_norm", inputs=True, when="after_conv")))
    assert explained(after_conv)["norm"] == ["input int8 per tensor"]
    asked = Target("mine", (OpRule("sigmoid", inputs=True, when="on_request"),))
    assert explained(asked) == {}
    recipe = fxq.Recipe(target=asked).with_rules(("sigmoid", fxq.QConfig()))
    assert fxq.explain(fxq.prepare(Net().eval(), X, recipe))["sigmoid"].is_quantized


def test_what_may_be_negative_can_have_a_descriptor_of_its_own() -> None:
    rows = (OpRule("mul", inputs=True), OpRule("mul", inputs=QuantDescriptor(), when="may_be_negative"))
    model = Gated().eval()
    found = fxq.explain(fxq.prepare(model, X, fxq.Recipe(target=Target("mine", rows, activation=UINT8))))
    assert [tensor.descriptor for tensor in found["mul"].quantized] == ["int8 per tensor", "uint8 affine per tensor"]


def test_a_kind_of_ones_own_is_quantized_like_any_other() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.erf(x)

    fxq.register_kind("test_own_gate", Gate)
    target = Target("mine", (CONV, OpRule("test_own_gate", inputs=True)))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Gate()).eval()
    found = fxq.explain(fxq.prepare(model, X, fxq.Recipe(target=target)))
    assert [tensor.role for tensor in found["1"].quantized] == ["input"]


class Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid().flatten(1).reshape(x.shape)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown kind": (
        lambda: Target("mine", (OpRule("lineer", inputs=True),)),
        "target 'mine': ops[0].kinds: there is no kind 'lineer'; did you mean 'linear'?",
    ),
    "kind of another type": (lambda: Target("mine", (OpRule(3, inputs=True),)), "ops[0].kinds: there is no kind 3"),
    "no kind": (lambda: Target("mine", (CONV, OpRule((), inputs=True))), "target 'mine': ops[1] names no kind"),
    "no row": (lambda: Target("mine", ("conv",)), "ops[0] must be a fxq.OpRule, got 'conv'"),
    "no rows": (lambda: Target("mine", "conv"), "target 'mine': ops must be a sequence of fxq.OpRule, got 'conv'"),
    "a slot of another type": (
        lambda: Target("mine", (OpRule("conv", inputs=8),)),
        "ops[0].inputs must be True, False or a QuantDescriptor, got 8",
    ),
    "unknown condition": (
        lambda: Target("mine", (OpRule("cat", inputs=True, when="after_conf"),)),
        "ops[0].when: there is no condition 'after_conf'; did you mean 'after_conv'?",
    ),
    "a condition for weights": (
        lambda: Target("mine", (OpRule("conv", weight=True, when="on_request"),)),
        "when='on_request' says when inputs are quantized; set inputs, and give weight and output a row of their own",
    ),
    "no descriptor for what may be negative": (
        lambda: Target("mine", (OpRule("mul", inputs=True, when="may_be_negative"),)),
        "when='may_be_negative' gives some inputs another descriptor; set inputs to that descriptor",
    ),
    "absorbed by no add": (
        lambda: Target("mine", (OpRule("mul", inputs=True, when="absorbed_by_conv"),)),
        'a convolution absorbs an "add" only, got mul',
    ),
    "an empty row": (lambda: Target("mine", (OpRule("conv"),)), "quantizes nothing: give it inputs, weight or output"),
    "a weight of nothing": (
        lambda: Target("mine", (OpRule("relu", weight=True),)),
        "ops[0].weight: 'relu' stores no weight; those that do",
    ),
    "inputs without activations": (
        lambda: Target("mine", (CONV,), activation=None),
        "ops[0].inputs: the target leaves activations in float",
    ),
    "rows that disagree": (
        lambda: Target("mine", (CONV, OpRule("conv", inputs=QuantDescriptor(narrow_range=True)))),
        "ops[0] and ops[1] contradict each other on inputs of 'conv': the target's default and int8 per tensor",
    ),
    "float and not": (
        lambda: Target("mine", (CONV, OpRule("conv", why="slow"))),
        "ops[1] and ops[0] contradict each other: the first leaves 'conv' in float (slow), the second quantizes it",
    ),
    "a width that the formats lack": (
        lambda: Target("mine", (OpRule("conv", inputs=QuantDescriptor(num_bits=4)),)),
        "ops[0].inputs: target 'mine' has no 4-bit activations; use num_bits=8 or leave the module in float (a rule "
        "with None). If the runtime has it, say so in the target's formats and file",
    ),
    "a default that the formats lack": (
        lambda: Target("mine", weight=QuantDescriptor(num_bits=4)),
        "target 'mine': weight: target 'mine' has no 4-bit",
    ),
    "an affine default in symmetric files": (
        lambda: Target("mine", activation=UINT8, file=FileRules(affine_activations=False)),
        "activation: target 'mine' takes signed symmetric activations only",
    ),
    "a dtype that the files lack": (
        lambda: Target("mine", activation=UINT8, file=FileRules(activation_dtypes=("int8",))),
        "activation: target 'mine' has no uint8 activations; its files hold int8",
    ),
    "weights without negative codes": (
        lambda: Target("mine", weight=QuantDescriptor(unsigned=True)),
        "symmetric unsigned codes hold no negative weights; add symmetric=False",
    ),
    "a descriptor of another type": (lambda: Target("mine", weight="int8"), "weight must be a QuantDescriptor"),
    "file rules of another type": (lambda: Target("mine", file=3), "target 'mine': file must be a FileRules, got 3"),
    "codes that do not exist": (
        lambda: Target("mine", file=FileRules(weight_dtypes=("int8", "unt8"))),
        "target 'mine': file.weight_dtypes: no codes are 'unt8'; did you mean 'uint8'?",
    ),
    "an opset that does not exist": (
        lambda: Target("mine", file=FileRules(minimum_opset=99)),
        "file.minimum_opset must be an ONNX opset that has QuantizeLinear per axis, 13 to 28, got 99",
    ),
    "the axis of no operator": (
        lambda: Target("mine", file=FileRules(weight_axes=(("Conf", 0),))),
        "no operator 'Conf' has a per-channel weight; did you mean 'Conv'?",
    ),
    "a file rule of another type": (
        lambda: Target("mine", file=FileRules(minimum_opset="21")),
        "file.minimum_opset must look like 18, got '21'",
    ),
    "a format of another type": (
        lambda: Target("mine", formats=Formats(weight_bits=8)),
        "formats.weight_bits must look like frozenset({8})",
    ),
    "an activation that is none": (
        lambda: Target("mine", fused_activations={"relu7"}),
        "fused_activations: there is no kind 'relu7'; did you mean",
    ),
    "kinds that are a text": (lambda: Target("mine", float_readers="conv"), "float_readers must be a set of kinds"),
    "a name that is none": (lambda: Target("my target"), "a target is named by letters, digits, '_' and '-'"),
    "Same of an unknown slot": (
        lambda: Target("mine", constraints=(Same("cat", ("input",)),)),
        "constraints[0].slots: there is no slot 'input'; did you mean 'inputs'?",
    ),
    "Same of one tensor": (
        lambda: Target("mine", constraints=(Same("cat", ("output",)),)),
        "one tensor is the same as itself",
    ),
    "Same of no kind": (
        lambda: Target("mine", constraints=(Same("kat"),)),
        "there is no kind 'kat'; did you mean 'cat'",
    ),
    "two Same of one kind": (
        lambda: Target("mine", constraints=(Same("cat"), Same("cat", ("inputs",)))),
        "two Same name other slots of 'cat'",
    ),
    "Fixed upside down": (
        lambda: Target("mine", constraints=(Fixed("sigmoid", 1, 0),)),
        "constraints[0]: low 1 is not below high 0",
    ),
    "Fixed to no number": (
        lambda: Target("mine", constraints=(Fixed("sigmoid", 0, float("inf")),)),
        "high must be a finite number, got inf",
    ),
    "Fixed twice": (
        lambda: Target("mine", constraints=(Fixed("tanh", -1, 1), Fixed(("tanh", "erf"), 0, 1))),
        "there is no kind 'erf'",
    ),
    "Fixed to two ranges": (
        lambda: Target("mine", constraints=(Fixed("tanh", -1, 1), Fixed("tanh", 0, 1))),
        "the output of 'tanh' is fixed to [-1, 1] and to [0, 1]",
    ),
    "Fixed below unsigned codes": (
        lambda: Target("mine", constraints=(Fixed("tanh", -1, 1),), activation=QuantDescriptor(unsigned=True)),
        "constraints[0]: codes of uint8 per tensor start at 0 and cannot hold -1",
    ),
    "Fixed in float": (
        lambda: Target("mine", constraints=(Fixed("tanh", -1, 1),), activation=None),
        "there is no range to fix",
    ),
    "Derived without weights": (
        lambda: Target("mine", (OpRule("conv", inputs=True),), (Derived("conv"),)),
        "the bias of 'conv' follows from the steps of its inputs and its weight, and no row quantizes its weight",
    ),
    "Derived of what has no bias": (
        lambda: Target("mine", (CONV,), (Derived("cat"),)),
        "a bias is derived for conv, conv_transpose, linear only",
    ),
    "no constraint": (
        lambda: Target("mine", constraints=(CONV,)),
        "constraints[0] must be a fxq.Same, fxq.Fixed or fxq.Derived",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_with_the_target_the_field_and_what_to_write(
    make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(fxq.TargetError, match=re.escape(message)):
        make()
