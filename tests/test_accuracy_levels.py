"""Recipe.with_accuracy: which passes a level puts into a recipe."""

import pytest

import fxq
from fxq.accuracy_levels import LEVELS

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
def test_weights_alone_are_rounded_at_best(name: str) -> None:
    plain = fxq.recipe(name).with_accuracy("plain")
    assert plain.with_accuracy("fast") == plain
    assert [one for one in names(plain.with_accuracy("best")) if one not in names(plain)] == ["round_weights"]


def test_a_recipe_without_fit_ranges_has_no_place_for_a_level() -> None:
    recipe = fxq.recipe("tensorrt").without_pass("fit_ranges")
    with pytest.raises(fxq.errors.RecipeError, match="has no pass 'fit_ranges'"):
        recipe.with_accuracy("best")
