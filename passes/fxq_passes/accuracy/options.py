"""What the options of accuracy passes can be."""

from dataclasses import fields
from typing import Any

from fxq.errors import RecipeError


def check_numbers(step: Any) -> None:
    """Raise a RecipeError if a count of a pass is below 1, or another number below 0 or not finite."""
    for one in fields(step):
        value = getattr(step, one.name)
        least = 1 if one.type is int else 0
        if one.type in (int, float) and not least <= value < float("inf"):
            raise RecipeError(f"{step.name}: {one.name} is {least} or more, and finite, got {value!r}")
