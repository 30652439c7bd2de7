"""The recipe that the command line asks for, and ``fxq recipe``."""

from dataclasses import dataclass

from fxq.cli.console import print_plain
from fxq.recipe import Recipe
from fxq.recipe import recipe as find_recipe


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
        chosen = find_recipe(self.name).with_rules(*((glob, None) for glob in self.leave_in_float))
        return chosen if self.calibrator is None else chosen.replace(calibrator=self.calibrator)


def run_recipe(name: str) -> None:
    """Print a recipe as TOML."""
    print_plain(find_recipe(name).to_toml().rstrip())
