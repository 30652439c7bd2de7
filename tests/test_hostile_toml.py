"""Recipes and targets as people, editors and attackers send them: an error that names the key, and never another."""

import copy
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import fxq
from fxq import Recipe, RecipeError, Target, TargetError

WRONG = {
    "integer": 3, "negative": -1, "huge": 10**400, "float": 1.5, "nan": float("nan"), "inf": float("inf"),
    "text": "no such thing", "empty text": "", "flag": True, "list": [], "numbers": [3], "texts": ["x"],
    "mixed": [1, "x", {}], "nested": [[["x"]]], "table": {}, "full table": {"a": 1}, "tables": [{"a": 1}],
    "date": datetime.date(2026, 1, 1), "time": datetime.time(1),
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "name": "mine",
    "target": "tensorrt",
    "calibrator": "max",
    "leaf_modules": ["Head"],
    "default": {
        "activation": {
            "num_bits": 8, "axis": 0, "unsigned": True, "narrow_range": False, "symmetric": True, "calibrator": "max",
            "amax": 1.0, "learn_amax": False, "fake_quant": True, "scale_amax": 1.0, "name": "x",
        },
        "weight": {"num_bits": 4, "axis": 0, "block_size": 32},
    },
    "rules": [
        {"match": "fc", "float": True},
        {"type": "torch.nn.Conv2d", "activation": {"symmetric": False, "range": [-1.0, 1.0]}},
    ],
    "passes": [{"name": "fold_batchnorm"}, {"name": "plan_ops", "options": {}}],
}  # fmt: skip
TARGET = {
    "name": "mine",
    "activation": {"num_bits": 8, "unsigned": True, "symmetric": False},
    "weight": {"axis": 0},
    "formats": {
        "activation_bits": [8], "weight_bits": [4, 8], "packed_bits": [4], "block_sizes": [32], "float8": False,
        "block_kinds": ["linear"],
    },
    "file": {
        "affine_activations": True, "affine_weights": False, "quantized_outputs_allowed": True,
        "fast_weight_only": False, "activation_dtypes": ["uint8"], "weight_dtypes": ["int8"],
        "weight_axes": {"Conv": 0}, "minimum_opset": 18, "dynamic_batch": True,
    },
    "fused_activations": ["relu"],
    "float_readers": ["softmax"],
    "ops": [{"kinds": ["conv"], "inputs": True, "weight": True, "output": True}, {"kinds": "mul", "why": "slow"}],
    "constraints": [
        {"type": "same", "kinds": ["cat"], "slots": ["inputs", "output"]},
        {"type": "fixed", "kinds": ["sigmoid"], "low": 0.0, "high": 1.0},
        {"type": "derived", "kinds": ["conv"]},
    ],
}  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def check(read: Any, whole: dict[str, Any], path: tuple[Any, ...], wanted: tuple[type[Exception], ...]) -> None:
    named = next(key for key in reversed(path) if isinstance(key, str))
    whole = copy.deepcopy(whole)
    inner: Any = whole
    for key in path[:-1]:
        inner = inner[key]
    right = inner[path[-1]]
    for kind, wrong in WRONG.items():
        inner[path[-1]] = wrong
        try:
            read(tomli_w.dumps(whole))
        except wanted as error:
            # What is of the right type may only contradict something else, which is named then.
            if type(wrong) is not type(right):
                assert named in str(error), f"{kind} at {path}: {error}"  # noqa: PT017 - not all are refused
        except Exception as error:
            raise AssertionError(f"{kind} at {path}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("path", [*places(RECIPE)], ids=lambda path: ".".join(map(str, path)))
def test_a_wrong_value_anywhere_in_a_recipe_is_a_recipe_error_that_names_its_key(path: tuple[Any, ...]) -> None:
    check(lambda text: Recipe.from_toml(text).create_passes(), RECIPE, path, (RecipeError, TargetError))


@pytest.mark.parametrize("path", [*places(TARGET)], ids=lambda path: ".".join(map(str, path)))
def test_a_wrong_value_anywhere_in_a_target_is_a_target_error_that_names_its_key(path: tuple[Any, ...]) -> None:
    check(Target.from_toml, TARGET, path, (TargetError,))


def test_the_documents_that_are_broken_here_are_whole() -> None:
    assert Recipe.from_toml(tomli_w.dumps(RECIPE)).name == "mine"
    assert Target.from_toml(tomli_w.dumps(TARGET)).name == "mine"


HOSTILE = {
    "nested arrays": ("a = " + "[" * 5000 + "]" * 5000, "nests values deeper than 20 levels"),
    "nested tables": ("a = " + "{a=" * 100 + "1" + "}" * 100, "nests values deeper than 20 levels"),
    "dotted": (".".join("a" * 5000) + " = 1", "nests values deeper than 20 levels"),
    "long integer": ("a = " + "9" * 5000, "is not valid TOML: .*digits"),
    "huge": ("#" * 1_000_001, "more than 1000000 bytes"),
    "NUL": ("a = '\0'", "is not valid TOML"),
    "bytes": (b"target = 'tensorrt'", "must be text, got bytes"),
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
def test_text_that_is_no_recipe_is_refused(text: str, message: str) -> None:
    for read, error in ((Recipe.from_toml, RecipeError), (Target.from_toml, TargetError)):
        with pytest.raises(error, match=message):
            read(text)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    cases: list[tuple[Path | str, str]] = [
        (tmp_path / "folder.toml", "cannot read the .*folder.toml: Is a directory"),
        ("a\0.toml", "cannot read the .*null byte"),
        ("x" * 300 + ".toml", "cannot read the .*name too long"),
        (file, r"cannot read the .*mine.toml: it is no text in UTF-8 .*; save it as UTF-8"),
    ]
    (tmp_path / "folder.toml").mkdir()
    file.write_bytes("name = 'é'".encode("latin-1"))
    for path, message in cases:
        for read, error in ((fxq.recipe, RecipeError), (Target.from_file, TargetError)):
            with pytest.raises(error, match=message):
                read(path)
    file.write_bytes(b"\xef\xbb\xbftarget = 'tensorrt'")  # as editors on Windows begin a file
    assert fxq.recipe(file).resolved_target.name == "tensorrt"
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    with pytest.raises(RecipeError, match="more than 1000000 bytes"):
        fxq.recipe(tmp_path / "zero.toml")


def test_a_rule_that_says_nothing_is_refused_and_the_targets_defaults_can_be_written() -> None:
    with pytest.raises(RecipeError, match=r"rules\[0\] says nothing about 'fc': add float = true"):
        Recipe.from_toml('target = "tensorrt"\n[[rules]]\nmatch = "fc"')
    recipe = fxq.recipe("tensorrt").with_rules(("fc", fxq.QConfig()))
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@pytest.mark.parametrize(
    "changes",
    [{"name": 3}, {"calibrator": ["max"]}, {"leaf_modules": 3}, {"leaf_modules": (3,)}, {"rules": 3}, {"passes": 3}],
    ids=str,
)
def test_a_recipe_made_in_python_is_held_to_the_same(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(changes))):
        Recipe(**changes)
