"""Request: what ``prepare`` was asked for, of a whole model or of a part of one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule

from fxq.frontend.choice import Frontend
from fxq.recipe import Recipe


@dataclass(frozen=True)
class Request:
    """What to make of a model.

    Args:
        recipe: how to quantize.
        qat: the result will be trained.
        verify: hold each pass to its tolerance.
        leaf_modules: globs of modules that stay whole, by their path in the part.
        frontend: what traces it.
        within: path and type, in the user's model, of the modules around the part, and last its own; () for all of it.
        operations: collects the names that rules have for those of a part; None: the rules are checked.
        note_plans: puts the plans on the graph, in place of the rules and the passes that make plans; None: these do.
    """

    recipe: Recipe
    qat: bool
    verify: bool
    leaf_modules: Sequence[str]
    frontend: Frontend = "auto"
    within: tuple[tuple[str, type[nn.Module]], ...] = ()
    operations: set[str] | None = None
    note_plans: Callable[[GraphModule], None] | None = None

    @property
    def path(self) -> str:
        """The path of the part in the user's model."""
        return self.within[-1][0] if self.within else ""
