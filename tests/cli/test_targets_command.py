"""``fxq targets``: what there is, where it comes from, and one of them as text."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

import fxq as package

Fxq = Callable[..., Result]


def test_the_listing_says_where_a_target_comes_from_and_what_it_runs(fxq: Fxq) -> None:
    package.register_target(package.Target("test_listed", (package.OpRule("conv", inputs=True),)))
    found = {target["name"]: target for target in json.loads(fxq("targets", "--json").stdout)}
    assert found["tensorrt"]["package"] == "fxq"
    assert found["weight_only"]["activation"] == "float"
    assert found["test_listed"] == {
        "name": "test_listed",
        "package": "",
        "module": "test_targets_command",
        "activation": "int8 per tensor",
        "weight": "int8 per channel (axis 0)",
        "runs": ["conv"],
    }
    table = fxq("targets").stdout
    assert "test_listed" in table
    assert "test_targets_command" in table


@pytest.mark.parametrize("name", ["tensorrt", "onnxruntime", "openvino", "dynamic", "weight_only"])
def test_a_printed_target_is_the_target(fxq: Fxq, name: str) -> None:
    assert package.Target.from_toml(fxq("targets", name).stdout) == package.get_target(name)


def test_a_file_is_checked_by_printing_it(fxq: Fxq) -> None:
    Path("mine.toml").write_text('name = "mine"\nops = [{kinds = "lineer", inputs = true}]\n')
    result = fxq("targets", "mine.toml")
    assert result.exit_code == 1
    assert "error: mine.toml: target 'mine': ops[0].kinds: there is no kind 'lineer'; did you mean" in result.stderr
    assert "cannot read the target none.toml" in fxq("targets", "none.toml").stderr
    assert "unknown target 'tensort'; did you mean 'tensorrt'?" in fxq("targets", "tensort").stderr


def test_a_recipe_with_a_target_of_ones_own_explains_a_model(fxq: Fxq) -> None:
    Path("mine.toml").write_text('name = "mine"\nops = [{kinds = ["linear"], inputs = true, weight = true}]\n')
    Path("recipe.toml").write_text('target = "mine.toml"\n')
    result = fxq("explain", "nets_of_a_user:small", "--recipe", "recipe.toml", "--json")
    nodes = {node["path"]: node for node in json.loads(result.stdout)["nodes"]}
    assert [tensor["role"] for tensor in nodes["head"]["quantized"]] == ["input", "weight"]
    assert nodes["conv"]["reason"] == "mine runs it in float"
