"""AutoQuantized: the quantized model that keeps its metric, what was left in float for that, and what was tried."""

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text
from torch.fx import GraphModule

from fxq.layer_report import as_text
from fxq.literal import literal
from fxq.recipe import Recipe


@dataclass(frozen=True)
class Attempt:
    """One model that the metric judged.

    Args:
        groups: how many groups of operations were in float.
        value: the metric.
        is_converted: it was prepared, calibrated and converted; else quantizers were switched in one calibrated model.
        seconds: from the start of the search.
    """

    groups: int
    value: float
    is_converted: bool
    seconds: float


@dataclass(frozen=True)
class AutoQuantized:
    """What ``fxq.auto_quantize`` returns.

    Args:
        converted: the quantized model, as of ``fxq.convert``; ``value`` was measured on it.
        recipe: that made it, with a rule for each operation in float; ``recipe.to_toml()`` is text.
        in_float: what was left in float: for each group, the names that rules have for its operations.
        value, float_value, quantized_value: the metric of the result, the float model, and with nothing in float.
        max_drop: how much lower than ``float_value`` was allowed.
        groups: how many groups could be quantized.
        int8_share: of all multiplications, those computed with quantized operands.
        attempts: what was tried, in order.
        notes: what was not reached or not finished, and why.
        seconds: it took.
    """

    converted: GraphModule
    recipe: Recipe
    in_float: tuple[tuple[str, ...], ...]
    value: float
    float_value: float
    quantized_value: float
    max_drop: float
    groups: int
    int8_share: float
    attempts: tuple[Attempt, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def is_reached(self) -> bool:
        """Does the result keep the metric?"""
        return self.value >= self.float_value - self.max_drop

    def table(self) -> str:
        """Return what was found as a table of text, as wide as the terminal; 120 columns where stdout is none."""
        return as_text(self)

    def __str__(self) -> str:
        return self.table()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        kept = "kept" if self.is_reached else "NOT reached"
        least = f"at least {self.float_value - self.max_drop:.5g} was asked for: {kept}"
        table.add_row("metric", f"{self.value:.5g}; float {self.float_value:.5g}, {least}")
        table.add_row("", f"{self.quantized_value:.5g} with nothing in float")
        table.add_row("in float", f"{len(self.in_float)} of {self.groups} groups")
        for paths in self.in_float:
            table.add_row("", Text(literal(", ".join(paths))))
        table.add_row("quantized", f"{100 * self.int8_share:.1f} % of all multiplications")
        converted = sum(attempt.is_converted for attempt in self.attempts)
        table.add_row("tried", f"{len(self.attempts)} models, {converted} converted, in {self.seconds:.0f} s")
        for note in self.notes:
            table.add_row("note", Text(literal(note)))
        yield table
