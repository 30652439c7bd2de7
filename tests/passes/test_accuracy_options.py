"""Options of accuracy passes that are no counts, or no sizes, are refused where they are given."""

import pytest

import fxq


@pytest.mark.parametrize(
    ("name", "option", "value", "least"),
    [
        ("equalize_channels", "samples", 0, 1),
        ("equalize_channels", "least_spread", float("nan"), 0),
        ("refine_ranges", "samples", -5, 1),
        ("refine_ranges", "most_error", float("inf"), 0),
    ],
)
def test_numbers_that_can_not_be_are_refused(name: str, option: str, value: float, least: int) -> None:
    recipe = fxq.recipe("tensorrt").with_accuracy("fast")
    with pytest.raises(fxq.RecipeError, match=f"{name}: {option} is {least} or more, and finite, got {value}"):
        recipe.with_pass_options(name, **{option: value})
