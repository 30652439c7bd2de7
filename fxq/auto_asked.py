"""What auto_quantize was asked for."""

from dataclasses import dataclass

from torch import nn

from fxq.batches import ExampleInputs
from fxq.calibration_report import CalibrationReport
from fxq.data import Data
from fxq.metric import Metric
from fxq.recipe import Recipe


@dataclass(frozen=True)
class Asked:
    """What ``auto_quantize`` was asked for; its arguments, and with ``unjudged`` as of ``fxq.calibrate``."""

    model: nn.Module
    data: Data
    example_inputs: ExampleInputs
    recipe: Recipe
    metric: Metric
    max_drop: float
    max_float: float | None
    budget_s: float | None
    unjudged: bool

    def limit(self, groups: int) -> int:
        """Return how many of ``groups`` may be left in float."""
        if self.max_float is None:
            return groups
        return min(int(self.max_float * groups) if isinstance(self.max_float, float) else self.max_float, groups)

    def as_run(self, recipe: Recipe, report: CalibrationReport) -> Recipe:
        """Return ``recipe`` without passes that nobody asked for and that came to nothing; a Recipe asks for them.

        What did not run for want of samples would run then, and what failed would be an error.
        """
        if self.unjudged:
            return recipe
        if all(step.sqnr_after_db is None for step in report.steps):
            return recipe.with_accuracy("plain")
        for step in report.steps:
            if step.error:
                recipe = recipe.without_pass(step.name)
        return recipe
