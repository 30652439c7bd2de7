"""The recipe that the command line asks for, and ``fxq recipe``."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from fxq.cli.console import print_plain
from fxq.errors import RecipeError
from fxq.recipe import Recipe
from fxq.recipe import recipe as find_recipe
from fxq.target import TARGETS


@dataclass(frozen=True)
class RecipeChoice:
    """A recipe and what is changed about it.

    Args:
        name: of a built-in recipe, or a .toml file.
        calibrator: instead of the recipe's own; None keeps it.
        leave_in_float: globs on module paths.
    """

    name: str
    calibrator: str | None = None
    leave_in_float: tuple[str, ...] = ()

    def resolve(self) -> Recipe:
        """Return the recipe; a RecipeError if there is none, or it makes no sense."""
        chosen = _find(self.name).with_rules(*((glob, None) for glob in self.leave_in_float))
        return chosen if self.calibrator is None else chosen.replace(calibrator=self.calibrator)


def run_recipe(name: str) -> None:
    """Print a recipe as TOML."""
    print_plain(_find(name).to_toml().rstrip())


def _find(name: str) -> Recipe:
    close = difflib.get_close_matches(name, TARGETS, n=1)
    if close and name not in TARGETS and not Path(name).is_file():
        raise RecipeError(f"unknown recipe {name!r}; did you mean {close[0]!r}?")
    return find_recipe(name)
