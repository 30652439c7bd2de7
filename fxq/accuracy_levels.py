"""Accuracy levels: the passes of the stage CALIBRATED that each adds behind ``fit_ranges``."""

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from fxq.errors import RecipeError
from fxq.targets import Target

# In order: what rewrites equivalently comes first, what makes up for the rounding of all others last;
# distill, which goes on from there, hardly moves a bias and cannot do without its correction.
LEVELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "plain": (),
        "fast": ("equalize_channels", "shift_activations", "refine_ranges", "correct_bias"),
        "best": ("equalize_channels", "shift_activations", "refine_ranges", "round_weights", "correct_bias", "distill"),
    }
)
DEFAULT_LEVEL = "fast"
_OF_ANY_LEVEL = frozenset(name for names in LEVELS.values() for name in names)
_FOR_WEIGHTS_ALONE = ("round_weights",)  # at any level but plain: they are all that batches are good for
_BEHIND = "fit_ranges"


def pass_names(names: Sequence[str], target: Target, level: str, recipe: str) -> tuple[str, ...]:
    """Return the names of a recipe's passes at another level.

    Args:
        names: of its passes now, in order.
        target: of the recipe.
        level: a key of LEVELS.
        recipe: its name, for errors.

    Raises:
        RecipeError: there is no such level, or no place for it.
    """
    if not isinstance(level, str) or level not in LEVELS:
        close = difflib.get_close_matches(str(level), LEVELS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(LEVELS)}"
        raise RecipeError(f"there is no accuracy level {level!r}; {hint}")
    added = LEVELS[level]
    if target.is_dynamic and added:
        raise RecipeError(
            f"the recipe {recipe!r} measures ranges as the model runs: there is no calibration for accuracy={level!r} "
            "to improve. Take a recipe with calibrated ranges, such as 'onnxruntime'"
        )
    if not target.needs_data:
        added = _FOR_WEIGHTS_ALONE if added else ()
    kept = [name for name in names if name not in _OF_ANY_LEVEL]
    if not added:
        return tuple(kept)
    if _BEHIND not in kept:
        raise RecipeError(
            f"the recipe {recipe!r} has no pass {_BEHIND!r}, behind which accuracy={level!r} adds its own"
        )
    place = kept.index(_BEHIND) + 1
    return (*kept[:place], *added, *kept[place:])
