"""Targets as TOML: all of it comes back, in recipes too, and what means nothing is refused."""

import dataclasses
import re
from pathlib import Path

import pytest

import fxq
from fxq import Derived, FileRules, Fixed, Formats, OpRule, QuantDescriptor, Same, Target

EVERY_FIELD = Target(
    "every-field",
    ops=(
        OpRule(("conv", "linear"), inputs=True, weight=QuantDescriptor(axis=None), output=QuantDescriptor(num_bits=16)),
        OpRule("cat", inputs=True, when="all_readers_quantized", why="its readers decide"),
    ),
    constraints=(Same("cat", ("inputs",)), Fixed("tanh", -1, 0.5), Derived(("conv", "linear"))),
    file=FileRules(affine_weights=False, minimum_opset=21, weight_axes=(("Conv", 0), ("ConvTranspose", 0))),
    activation=QuantDescriptor(unsigned=True, symmetric=False),
    weight=QuantDescriptor(num_bits=4, axis=0),
    formats=Formats(activation_bits={8, 16}, weight_bits={4, 8}, packed_bits={4}, block_sizes={32}),
    fused_activations=frozenset({"relu", "clip"}),
    float_readers=frozenset({"layer_norm"}),
)  # fmt: skip
TOML = """
name = "mine"
[[ops]]
kinds = ["conv", "linear"]
inputs = true
weight = {axis = 0, narrow_range = true}
[[constraints]]
type = "same"
kinds = ["cat"]
"""


def test_every_field_comes_back_from_text() -> None:
    assert Target.from_toml(EVERY_FIELD.to_toml()) == EVERY_FIELD
    assert set(EVERY_FIELD.to_dict()) == {field.name for field in dataclasses.fields(Target)}


@pytest.mark.parametrize("name", ["tensorrt", "onnxruntime", "openvino", "dynamic", "weight_only"])
def test_built_in_targets_come_back_from_text(name: str) -> None:
    assert Target.from_toml(fxq.get_target(name).to_toml()) == fxq.get_target(name)


def test_text_may_name_one_kind_by_a_word_and_leave_defaults_out() -> None:
    found = Target.from_toml('name = "x"\nops = [{kinds = "conv", weight = true}]\nactivation = false')
    assert found == Target("x", (OpRule("conv", weight=True),), activation=None)


def test_a_recipe_holds_the_target_in_full_where_no_name_stands_for_it() -> None:
    recipe = fxq.Recipe(target=EVERY_FIELD)
    assert recipe.name == "every-field"
    assert fxq.Recipe.from_toml(recipe.to_toml()) == recipe
    by_name = fxq.Recipe(target=fxq.get_target("tensorrt"))
    assert 'target = "tensorrt"' in by_name.to_toml()


def test_a_recipe_names_the_file_of_a_target_which_lies_beside_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.toml").write_text(TOML)
    (tmp_path / "recipe.toml").write_text('target = "mine.toml"\ncalibrator = "max"\n')
    recipe = fxq.recipe(tmp_path / "recipe.toml")
    assert recipe.target == Target.from_toml(TOML)
    assert recipe.name == "mine"
    monkeypatch.chdir(tmp_path)
    assert fxq.Recipe(target="mine.toml").target == recipe.target
    (tmp_path / "mine.toml").write_text("name = 3")
    with pytest.raises(fxq.TargetError, match=r"mine.toml: a target is named by letters"):
        fxq.Recipe(target="mine.toml")
    with pytest.raises(fxq.RecipeError, match=r"recipe.toml: .*mine.toml: a target is named"):
        fxq.recipe("recipe.toml")
    with pytest.raises(fxq.TargetError, match=r"cannot read the target none.toml: No such file"):
        fxq.Recipe(target="none.toml")


REFUSED = {
    "no TOML": ("name = ", "the target is not valid TOML"),
    "no name": ("ops = []", 'a target has a name: add name = "mine"'),
    "unknown entry": ("name = 'x'\nopps = []", "target 'x': a target has no entry 'opps'"),
    "a pass's option": (
        "name = 'x'\nmin_channels = 16",
        "no entry 'min_channels' (options of passes belong in a recipe)",
    ),
    "ops are no tables": (
        "name = 'x'\nops = ['conv']",
        "target 'x': ops must be a list of tables ([[ops]]), got ['conv']",
    ),
    "unknown entry of a row": (
        "name = 'x'\n[[ops]]\nkinds = 'conv'\ninput = true",
        "target 'x': ops[0]: a row has no entry 'input' (options of passes belong in a recipe); did you mean 'inputs'?",
    ),
    "a row without kinds": ("name = 'x'\n[[ops]]\ninputs = true", 'ops[0] names no kind: add kinds = ["conv"]'),
    "kinds that are numbers": ("name = 'x'\n[[ops]]\nkinds = [1]", "ops[0].kinds must be a list of words, got [1]"),
    "a slot that is a number": ("name = 'x'\n[[ops]]\nkinds = 'conv'\ninputs = 8", "inputs must be True, False or a Q"),
    "a descriptor that is wrong": (
        "name = 'x'\n[[ops]]\nkinds = 'conv'\ninputs = {num_bits = 99}",
        "ops[0].inputs: num_bits must be from 2 to 16",
    ),
    "an unknown descriptor field": ("name = 'x'\n[weight]\nbits = 8", "weight: unknown descriptor field 'bits'"),
    "activation is a text": ("name = 'x'\nactivation = 'int8'", "activation must be a table of descriptor fields"),
    "weights in float": ("name = 'x'\nweight = false", "weight must be a QuantDescriptor, got None"),
    "an unknown file rule": ("name = 'x'\n[file]\nopset = 21", "target 'x': file: file has no entry 'opset'"),
    "a file rule of another type": ("name = 'x'\n[file]\nminimum_opset = '21'", "file.minimum_opset must look like 18"),
    "axes that are no table": ("name = 'x'\n[file]\nweight_axes = [1]", "file.weight_axes must look like"),
    "formats of another type": ("name = 'x'\nformats = 8", "target 'x': formats must be a table, got 8"),
    "a constraint without type": (
        "name = 'x'\n[[constraints]]\nkinds = 'cat'",
        "type must be one of same, fixed, derived",
    ),
    "an unknown constraint": (
        "name = 'x'\n[[constraints]]\ntype = 'equal'",
        "one of same, fixed, derived, got 'equal'",
    ),
    "a constraint that lacks a bound": (
        "name = 'x'\n[[constraints]]\ntype = 'fixed'\nkinds = 'tanh'\nlow = -1",
        "constraints[0]: Fixed needs 'high'",
    ),
    "a constraint with more": (
        "name = 'x'\n[[constraints]]\ntype = 'same'\nkinds = 'cat'\nlow = 1",
        "constraints[0]: Same has no entry 'low'",
    ),
    "a bound that is a text": (
        "name = 'x'\n[[constraints]]\ntype = 'fixed'\nkinds = 'tanh'\nlow = 'a'\nhigh = 1",
        "low must be a finite number",
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_text_that_is_no_target_is_an_error(text: str, message: str) -> None:
    with pytest.raises(fxq.TargetError, match=re.escape(message)):
        Target.from_toml(text)
