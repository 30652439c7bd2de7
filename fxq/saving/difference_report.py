"""What tells two saved models apart, as data and as tables."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from fxq.layer_report import as_text, decibel
from fxq.literal import literal

_MOST_LINES = 40


@dataclass(frozen=True)
class Unlike:
    """Something that is not the same in both; "" where one has none.

    Args:
        what: its name, such as the path of a quantizer; "conv1 input 0" for a plan.
        first, second: what it is there, in words.
    """

    what: str
    first: str
    second: str


@dataclass(frozen=True)
class UnlikeRange:
    """The range of a quantizer.

    Args:
        quantizer: its path.
        first, second: the ranges in words; "" where there is none.
        apart: how far its ends are moved at most, as a share of the wider range; None where they cannot be compared.
    """

    quantizer: str
    first: str
    second: str
    apart: float | None


@dataclass(frozen=True)
class UnlikeWeight:
    """A weight, bias or other stored tensor.

    Args:
        path: of it.
        sqnr_db: 10 log10(sum first^2 / sum (first - second)^2); None where their shapes differ or one is missing.
        max_abs: the largest difference; None as well.
        first, second: dtype and shape; "" where there is none.
    """

    path: str
    sqnr_db: float | None
    max_abs: float | None
    first: str
    second: str


@dataclass(frozen=True)
class Difference:
    """What ``fxq.diff`` returns. ``print`` it; ``to_dict`` is for programs. It is true where anything differs.

    Args:
        recipe: lines of a unified diff of the recipes.
        settings: stage, target and what else ``prepare`` was asked for.
        graph: lines with - and + of the operations that only one has.
        plans: what is planned otherwise: descriptors.
        quantizers: switches and how they observe.
        ranges: the furthest apart first.
        weights: the furthest apart first.
    """

    recipe: tuple[str, ...] = ()
    settings: tuple[Unlike, ...] = ()
    graph: tuple[str, ...] = ()
    plans: tuple[Unlike, ...] = ()
    quantizers: tuple[Unlike, ...] = ()
    ranges: tuple[UnlikeRange, ...] = ()
    weights: tuple[UnlikeWeight, ...] = ()

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain data."""
        return asdict(self)

    def table(self) -> str:
        """Return tables of text, as wide as the terminal; 120 columns without one."""
        return as_text(self)

    def __str__(self) -> str:
        return self.table()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self:
            yield Text("no difference")
            return
        for title, lines in (("recipe", self.recipe), ("graph", self.graph)):
            if lines:
                yield Text(f"{title}:", style="bold")
                yield Text(literal("\n".join(_shortened(lines)), kept="\n"))
        for title, unlike in (("setting", self.settings), ("plan", self.plans), ("quantizer", self.quantizers)):
            if unlike:
                yield _table((title, "first", "second"), [(one.what, one.first, one.second) for one in unlike])
        if self.ranges:
            rows = [(one.quantizer, one.first, one.second, _percent(one.apart)) for one in self.ranges]
            yield _table(("range", "first", "second", "apart"), rows)
        if self.weights:
            yield _table(("weight", "first", "second", "SQNR", "largest difference"), map(_weight_row, self.weights))


def _table(headings: Sequence[str], rows: Any) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(literal(cell)) for cell in row))
    return table


def _weight_row(one: UnlikeWeight) -> tuple[str, ...]:
    largest = "" if one.max_abs is None else f"{one.max_abs:.3g}"
    return one.path, one.first, one.second, decibel(one.sqnr_db), largest


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g} %"


def _shortened(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _MOST_LINES
    return [*lines[:_MOST_LINES], *([f"and {more} more lines"] if more > 0 else [])]
