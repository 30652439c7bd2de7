"""The recipe that the command line asks for, and ``fxq recipe``."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import GraphModule

from fxq import api
from fxq.cli.console import print_plain
from fxq.errors import RecipeError
from fxq.frontend.choice import Frontend
from fxq.quant.qconfig import Rule
from fxq.recipe import RECIPES, Recipe, recipe_at
from fxq.recipe import recipe as find_recipe
from fxq.registry import registered_targets
from fxq.untraceable import Untraceable

_RULES = """\
# A rule says what the modules that match get; the last match wins. Some to add:
#
#   [[rules]]
#   match = "fc"                      # a glob on the module path, as of fxq explain
#   float = true                      # stays in float; false: the target's defaults
#
#   [[rules]]
#   type = "torch.nn.Linear"          # or a module class
#   weight = {num_bits = 4, axis = 0, block_size = 32}
#   activation = {num_bits = 8}
"""
# What an entry of a recipe means, above its first line.
_COMMENTS = {
    "name = ": "For people, and in the metadata of the file.",
    "target = ": "What is quantized, and where: fxq targets lists them; or a .toml file of yours.",
    "calibrator = ": "How ranges of activations are fitted, as of --calibrator.",
    "leaf_modules = ": "Modules that are not traced into; they stay in float.",
    "[default": "Where no rule matches; what is open comes from the target.",
    "passes = ": "What is done, in this order: fxq passes NAME says what each is for.",
    "[[rules]]": "What the modules that match get; the last match wins.",
}


@dataclass(frozen=True)
class RecipeChoice:
    """A recipe and what is changed about it.

    Args:
        name: of a built-in recipe, or a .toml file.
        calibrator: instead of the recipe's own; None keeps it.
        accuracy: a level; None as in ``fxq.quantize``.
        leave_in_float: globs on module paths.
        leaf: globs on module paths or class names that tracing does not enter.
        untraceable, frontend: as of ``fxq.prepare``.
        has_data: there is calibration data, from which weights learn even where no activation is calibrated.
    """

    name: str
    calibrator: str | None = None
    accuracy: str | None = None
    leave_in_float: tuple[str, ...] = ()
    leaf: tuple[str, ...] = ()
    untraceable: Untraceable = "error"
    frontend: Frontend = "auto"
    has_data: bool = False

    def resolve(self) -> Recipe:
        """Return the recipe; a RecipeError if there is none, or it makes no sense."""
        chosen, _ = self._at_level()
        chosen = chosen.with_rules(*((glob, None) for glob in self.leave_in_float))
        chosen = chosen.replace(leaf_modules=(*chosen.leaf_modules, *self.leaf))
        return chosen if self.calibrator is None else chosen.replace(calibrator=self.calibrator)

    @property
    def runs_unjudged(self) -> bool:
        """Were the passes that improve asked for, so that they run even where little can judge them?"""
        return self._at_level()[1]

    def _at_level(self) -> tuple[Recipe, bool]:
        return recipe_at(self.name, self.accuracy, self.untraceable == "islands", self.has_data)

    def prepare(self, model: nn.Module, inputs: tuple[Any, ...] | None, verify: bool = False) -> GraphModule:
        """Return ``fxq.prepare`` of the model; what is wrong about the recipe is said in words of the shell."""
        try:
            return api.prepare(
                model, inputs, self.resolve(), verify=verify, frontend=self.frontend, untraceable=self.untraceable
            )
        except RecipeError as error:
            text = str(error)
            for glob in self.leave_in_float:
                text = text.replace(f"rule {Rule(glob, None)}", f"--leave-in-float {glob}")
            for glob in self.leaf:
                text = text.replace(f"leaf_modules names {glob!r}, which is", f"--leaf {glob} is")
            raise RecipeError(text) from error


def run_recipes_listing() -> None:
    """Print the names of all recipes, and what a rule looks like."""
    for name in dict.fromkeys((*RECIPES, *registered_targets())):
        needs = "calibration data" if find_recipe(name).resolved_target.needs_data else "no data"
        print_plain(f"{name:<18} needs {needs}")
    print_plain(f"\nfxq recipe NAME prints one, as a file to edit.\n\n{_RULES.rstrip()}")


def run_recipe(name: str) -> None:
    """Print a recipe as TOML, with comments."""
    print_plain(commented(find_recipe(name).to_toml()).rstrip())


def commented(toml: str) -> str:
    """Return a recipe's text with a comment above the first line of each kind, and what a rule looks like below."""
    waiting, lines = dict(_COMMENTS), list[str]()
    for line in toml.splitlines():
        start = next((start for start in waiting if line.startswith(start)), None)
        if start is not None:
            lines.append(f"# {waiting.pop(start)}")
        lines.append(line)
    return "\n".join((*lines, "", _RULES))
