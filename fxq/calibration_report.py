"""CalibrationReport: what each pass of the stage with data did to the quantized model, measured."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from fxq.literal import literal

_WIDTH = 120


@dataclass(frozen=True)
class CalibrationStep:
    """One pass.

    Args:
        name: of the pass.
        sqnr_before_db, sqnr_after_db: of the quantized model's outputs against the float model's, on samples that no
            pass saw; None where it was not measured.
        kept: False where the pass made things worse and was undone.
        seconds: that the pass took, without measuring.
    """

    name: str
    sqnr_before_db: float | None
    sqnr_after_db: float | None
    kept: bool
    seconds: float


@dataclass(frozen=True)
class CalibrationReport:
    """What ``fxq.calibrate`` returns; ``print`` shows a table.

    Args:
        steps: the passes in the order in which they ran.
        notes: in words, what was not measured and why, and what is wrong with the data.
        empty_ranges: quantizers for which the data held a single value, by module path, and what their range is.
    """

    steps: tuple[CalibrationStep, ...]
    notes: tuple[str, ...] = ()
    empty_ranges: Mapping[str, str] = field(default_factory=dict)

    def table(self) -> str:
        """Return the steps as a table of text, 120 columns wide at most."""
        console = Console(width=_WIDTH, record=True, file=io.StringIO())
        console.print(self)
        return "\n".join(line.rstrip() for line in console.export_text().splitlines())

    def __str__(self) -> str:
        return self.table()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._rich_table()

    def _rich_table(self) -> Table:
        table = Table(
            "pass",
            title="calibration",
            title_justify="left",
            caption=Text("\n".join(self.notes)) if self.notes else None,
        )
        table.caption_justify = "left"
        for heading in ("SQNR before", "after", "", "seconds"):
            table.add_column(heading, justify="right")
        for step in self.steps:
            kept = "kept" if step.kept else "undone"
            cells = _decibel(step.sqnr_before_db), _decibel(step.sqnr_after_db)
            table.add_row(
                Text(literal(step.name)), *cells, "" if step.sqnr_after_db is None else kept, f"{step.seconds:.2f}"
            )
        return table


def _decibel(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} dB"
