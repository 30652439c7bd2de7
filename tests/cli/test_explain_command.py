"""``fxq explain``, ``fxq passes``, ``fxq recipe``: what fxq would do, told to people and to programs."""

import json
from collections.abc import Callable
from pathlib import Path

from torch import nn
from typer.testing import Result

from fxq import Recipe, recipe, registered_passes

Fxq = Callable[..., Result]


def test_explain_says_of_each_node_how_or_why_not(fxq: Fxq) -> None:
    result = fxq("explain", "torchvision:resnet18", "--recipe", "tensorrt")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("tensorrt: 21 input, 8 residual, 21 weight")
    assert "tensorrt computes it in the epilogue" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_a_pipe_gets_every_reason(fxq: Fxq) -> None:
    told = "".join(fxq("explain", "nets_of_a_user:small").stdout.split())
    nodes = json.loads(fxq("explain", "nets_of_a_user:small", "--json").stdout)["nodes"]
    reasons = [tensor["why"] for node in nodes for tensor in node["quantized"]]
    assert all("".join(why.split()) in told for why in reasons)


def test_a_wide_terminal_gets_a_table_with_columns(fxq: Fxq, monkeypatch: object) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # type: ignore[attr-defined]
    result = fxq("explain", "nets_of_a_user:small")
    assert "why, or why not" in result.stdout


def test_explain_as_json_is_plain_data(fxq: Fxq) -> None:
    found = json.loads(fxq("explain", "nets_of_a_user:small", "--json", "--leave-in-float", "head").stdout)
    assert found["counts"] == {"input": 2, "residual": 1, "weight": 2}
    assert [node["quantized"] for node in found["nodes"] if node["path"] == "head"] == [[]]


def test_a_model_that_tests_shapes_needs_an_input_shape(fxq: Fxq) -> None:
    assert fxq("explain", "nets_of_a_user:ByShape", "--input-shape", "1x3x8x8").exit_code == 0
    assert fxq("explain", "nets_of_a_user:ByShape", "--input-shape", "1,3,8,8").exit_code == 0


def test_a_model_that_cannot_be_traced_is_an_error_with_the_line(fxq: Fxq) -> None:
    result = fxq("explain", "nets_of_a_user:Branches")
    assert result.exit_code == 1
    assert "nets_of_a_user.py" in result.stderr


def test_passes_are_listed_with_stage_options_and_package(fxq: Fxq) -> None:
    found = json.loads(fxq("passes", "--json").stdout)
    assert {entry["name"] for entry in found} >= set(registered_passes())
    (fold,) = [entry for entry in found if entry["name"] == "fold_batchnorm"]
    assert fold["stage"] == "normalized"
    assert fold["package"] == "fxq"
    assert fold["options"] == {"before": True}
    assert fold["summary"].startswith("Fold batch norm")
    names = [entry["name"] for entry in found]
    in_recipe = [spec.name for spec in recipe("tensorrt").passes]
    assert [name for name in names if name in in_recipe] == in_recipe
    stages = [entry["stage"] for entry in found]
    assert stages == sorted(stages, key=["normalized", "planned", "prepared", "calibrated", "frozen", "lowered"].index)


def test_one_pass_is_shown_with_all_there_is_about_it(fxq: Fxq) -> None:
    shown = fxq("passes", "plan_ops").stdout
    for text in ("planned", "min_channels = 0, depthwise = True", "EXACT: not a bit of the outputs changes", "Args:"):
        assert text in shown
    assert json.loads(fxq("passes", "correct_bias", "--json").stdout)["tolerance"] == "ANY"
    result = fxq("passes", "plan_op")
    assert result.exit_code == 1
    assert "unknown pass 'plan_op'; did you mean 'plan_ops'?" in result.stderr


def test_the_listing_of_passes_fits_in_80_columns(fxq: Fxq) -> None:
    listing = fxq("passes").stdout
    assert "plan_residual_adds" in listing
    assert "min_channels = 0" in listing
    assert max(map(len, listing.splitlines())) <= 80


def test_a_printed_recipe_can_be_edited_and_used(fxq: Fxq, tmp_path: Path) -> None:
    text = fxq("recipe", "tensorrt").stdout
    assert Recipe.from_toml(text) == recipe("tensorrt")
    (tmp_path / "mine.toml").write_text(text.replace('calibrator = "histogram"', 'calibrator = "max"'))
    assert 'calibrator = "max"' in fxq("recipe", "mine.toml").stdout
    assert fxq("explain", "nets_of_a_user:small", "--recipe", "mine.toml").exit_code == 0


def test_a_misspelt_recipe_is_recognised(fxq: Fxq) -> None:
    assert "did you mean 'openvino'?" in fxq("recipe", "openvin").stderr


def test_the_recipes_are_listed_with_what_a_rule_looks_like(fxq: Fxq) -> None:
    listing = fxq("recipe").stdout
    for name in ("tensorrt", "onnxruntime", "openvino", "dynamic", "weight_only", "weight_only_int4"):
        assert f"\n{name} " in f"\n{listing}"
    assert "[[rules]]" in listing


def test_the_rules_in_the_comments_of_a_recipe_are_rules(fxq: Fxq) -> None:
    text = fxq("recipe", "tensorrt").stdout
    assert "# What is done, in this order" in text
    rules = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#   ")]
    found = Recipe.from_toml("\n".join((text, *rules))).rules
    assert [(rule.match, rule.config is None) for rule in found] == [("fc", True), (nn.Linear, False)]
