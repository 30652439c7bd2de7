"""Recipe.with_accuracy: which passes a level puts into a recipe."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small import images, residual

import fxq
from fxq.accuracy_levels import LEVELS
from fxq.recipe import recipe_at
from fxq.state import find_state

FAST = ["equalize_channels", "shift_activations", "refine_ranges", "correct_bias"]
BEST = ["equalize_channels", "shift_activations", "refine_ranges", "round_weights", "correct_bias", "distill"]


def names(recipe: fxq.Recipe) -> list[str]:
    return [spec.name for spec in recipe.passes]


def added(recipe: fxq.Recipe, plain: fxq.Recipe) -> list[str]:
    """Return the passes between ``fit_ranges`` and what follows it in the plain recipe."""
    behind = names(plain)[names(plain).index("fit_ranges") + 1]
    found = names(recipe)
    return found[found.index("fit_ranges") + 1 : found.index(behind)]


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", "openvino"])
@pytest.mark.parametrize(("level", "expected"), [("plain", []), ("fast", FAST), ("best", BEST)])
def test_a_level_adds_its_passes_behind_fit_ranges(target: str, level: str, expected: list[str]) -> None:
    plain = fxq.recipe(target).with_accuracy("plain")
    recipe = fxq.recipe(target).with_accuracy(level)
    assert added(recipe, plain) == expected
    assert [name for name in names(recipe) if name not in expected] == names(plain)
    recipe.create_passes()  # in the order of their stages


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_survives_text(level: str) -> None:
    recipe = fxq.recipe("tensorrt").with_accuracy(level)
    assert fxq.Recipe.from_toml(recipe.to_toml()) == recipe


def test_the_same_level_twice_is_once_and_keeps_options() -> None:
    recipe = fxq.recipe("tensorrt").with_accuracy("fast")
    assert recipe.with_accuracy("fast") == recipe
    changed = recipe.with_pass_options("equalize_channels", samples=64)
    assert changed.with_accuracy("fast") == changed
    assert dict(changed.with_accuracy("best").passes[names(changed).index("equalize_channels")].options) == {
        "samples": 64
    }


def test_another_level_takes_the_place_of_the_first() -> None:
    plain = fxq.recipe("tensorrt").with_accuracy("plain")
    assert plain.with_accuracy("best").with_accuracy("fast") == plain.with_accuracy("fast")
    assert plain.with_accuracy("best").with_accuracy("plain") == plain
    assert plain.with_pass("correct_bias").with_accuracy("plain") == plain


def test_passes_of_others_stay() -> None:
    recipe = fxq.recipe("tensorrt").with_pass("remove_dropout", after="remove_dropout").with_accuracy("best")
    assert names(recipe).count("remove_dropout") == 2


@pytest.mark.parametrize(
    ("level", "hint"), [("fastest", "did you mean 'fast'"), ("good", "there are plain, fast, best")]
)
def test_a_level_that_is_none_is_refused(level: str, hint: str) -> None:
    with pytest.raises(fxq.errors.RecipeError, match=f"there is no accuracy level '{level}'; {hint}"):
        fxq.recipe("tensorrt").with_accuracy(level)


@pytest.mark.parametrize("level", [None, 3, ["fast"]])
def test_what_is_no_name_is_refused(level: object) -> None:
    with pytest.raises(fxq.errors.RecipeError, match="there is no accuracy level"):
        fxq.recipe("tensorrt").with_accuracy(level)  # type: ignore[arg-type]


def test_ranges_that_are_measured_as_the_model_runs_have_nothing_to_improve() -> None:
    recipe = fxq.recipe("dynamic")
    assert recipe.with_accuracy("plain") == recipe
    with pytest.raises(fxq.errors.RecipeError, match="there is no calibration for accuracy='fast' to improve"):
        recipe.with_accuracy("fast")


@pytest.mark.parametrize("name", ["weight_only", "weight_only_int4"])
@pytest.mark.parametrize("level", ["fast", "best"])
def test_weights_alone_are_rounded_for_batches(name: str, level: str) -> None:
    plain = fxq.recipe(name).with_accuracy("plain")
    assert [one for one in names(plain.with_accuracy(level)) if one not in names(plain)] == ["round_weights"]


@pytest.mark.parametrize("name", ["weight_only", "weight_only_int4"])
def test_batches_that_a_recipe_does_not_need_are_rounded_for(name: str) -> None:
    assert ran(name)[0] == ["round_weights"]


def test_without_batches_nothing_waits_for_them() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted = fxq.quantize(residual(), recipe="weight_only", example_inputs=images(2))
    assert find_state(converted).recipe == fxq.recipe("weight_only")  # type: ignore[union-attr]


def test_a_recipe_without_fit_ranges_has_no_place_for_a_level() -> None:
    recipe = fxq.recipe("tensorrt").without_pass("fit_ranges")
    with pytest.raises(fxq.errors.RecipeError, match="has no pass 'fit_ranges'"):
        recipe.with_accuracy("best")


def ran(recipe: Any, count: int = 32, held_out: float = 0.125, **options: Any) -> tuple[list[str], list[str]]:
    """Return the passes of calibration that ``quantize`` reports as run, and what it notes."""
    data = fxq.Data(images(count).split(8), held_out=held_out)
    state = find_state(fxq.quantize(residual(), data, recipe, images(2), **options))
    assert state is not None
    assert state.calibration is not None
    return [step.name for step in state.calibration.steps][2:], list(state.calibration.notes)


@pytest.mark.parametrize("name", ["tensorrt", "onnxruntime"])
def test_a_recipe_by_its_name_is_quantized_at_fast(name: str) -> None:
    assert ran(name)[0] == FAST


def test_with_islands_a_level_is_asked_for() -> None:
    assert recipe_at("tensorrt", None, has_islands=True) == (fxq.recipe("tensorrt"), True)
    assert recipe_at("tensorrt", "fast", has_islands=True) == (fxq.recipe("tensorrt").with_accuracy("fast"), True)
    assert recipe_at("tensorrt", None) == (fxq.recipe("tensorrt").with_accuracy("fast"), False)


def test_what_lists_its_passes_itself_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(fxq.recipe("tensorrt").to_toml())
    assert ran(fxq.recipe("tensorrt")) == ([], [])
    assert ran(str(tmp_path / "mine.toml")) == ([], [])
    assert ran("tensorrt", accuracy="plain") == ([], [])


@pytest.mark.parametrize(
    ("count", "held_out", "why"),
    [(31, 0.125, "31 samples are too few to judge by (32 would do)"), (32, 0, "no sample was held out to judge by")],
)
def test_passes_that_nobody_asked_for_do_not_run_where_too_little_can_judge_them(
    count: int, held_out: float, why: str
) -> None:
    steps, notes = ran("tensorrt", count, held_out)
    assert steps == []
    assert notes[0].startswith(f"{', '.join(FAST)} did not run, since {why}")
    assert ran("tensorrt", count, held_out, accuracy="fast")[0] == FAST


def test_without_them_the_model_is_that_of_the_plain_recipe() -> None:
    data = images(31)
    data[7] *= 9  # the last of a batch, which would be held out, reaches furthest
    found, plain = (fxq.quantize(residual(), data.split(8), accuracy=level) for level in (None, "plain"))
    assert torch.equal(found(data), plain(data))
    assert fxq.explain(found).quality == fxq.explain(plain).quality


def test_a_model_without_float_outputs_has_nothing_to_judge_by() -> None:
    model = torch.nn.Sequential(residual(), Classes()).eval()
    converted = fxq.quantize(model, images(32).split(8))
    report = find_state(converted).calibration  # type: ignore[union-attr]
    assert "the model returns no finite floating-point value to judge by" in report.notes[0]  # type: ignore[union-attr]


class Classes(torch.nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(1)
