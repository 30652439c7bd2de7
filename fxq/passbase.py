"""Pass: one rewriting step. Subclass it, name it with ``@fxq.register_pass``, and put it in a recipe."""

import abc
from typing import ClassVar

from fxq.graph.rewriter import Rewriter
from fxq.stage import Stage


class Pass(abc.ABC):
    """One step of a stage. A frozen dataclass: its fields are the options that a recipe can set.

    Attributes:
        name: the registered name; set by ``register_pass``.
        stage: the stage it works in.
        closes_stage: it has to see what all passes of its stage have done: ``Recipe.with_pass`` puts others before it.
        preserves_numbers: the graph computes the same before and after; ``prepare(verify=True)`` holds it to that.
    """

    name: ClassVar[str] = ""
    stage: ClassVar[Stage]
    closes_stage: ClassVar[bool] = False
    preserves_numbers: ClassVar[bool] = True

    @abc.abstractmethod
    def run(self, rw: Rewriter) -> None:
        """Edit the graph through ``rw``, with a reason for each edit and each refusal."""


def pass_summary(pass_type: type[Pass]) -> str:
    """Return the first line of a pass's docstring."""
    return (pass_type.__doc__ or "").strip().partition("\n")[0]


__all__ = ["Pass", "Stage", "pass_summary"]
