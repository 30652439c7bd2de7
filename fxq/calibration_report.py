"""CalibrationReport: what each pass of the stage with data did to the quantized model, measured."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from fxq.explanation import text_width
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
        changed: False where it found nothing to do.
        error: why it failed, where nobody had asked for it and it was undone.
    """

    name: str
    sqnr_before_db: float | None
    sqnr_after_db: float | None
    kept: bool
    seconds: float
    changed: bool = True
    error: str = ""

    @property
    def verdict(self) -> str:
        """What became of a pass that was measured, in words; "" for others."""
        if self.sqnr_after_db is None:
            return "failed" if self.error else ""
        return "nothing to do" if not self.changed else "kept" if self.kept else "undone"


@dataclass(frozen=True)
class CalibrationReport:
    """What ``fxq.calibrate`` returns; ``print`` shows a table.

    Args:
        steps: the passes in the order in which they ran.
        notes: in words, what was not measured and why, and what is wrong with the data.
        empty_ranges: quantizers for which the data held a single value, by module path, and what their range is.
        crowded_ranges: operations that join small tensors with large ones in one range, by the name that a rule has for
            them, and how many of its steps the small ones have where these are fewer than 4.
        batches: how many were read.
        samples: how many were in them, those held out included; None where ``forward=`` fed them.
        measuring_seconds: that running both models on the samples held out took, beside the passes.
    """

    steps: tuple[CalibrationStep, ...]
    notes: tuple[str, ...] = ()
    empty_ranges: Mapping[str, str] = field(default_factory=dict)
    crowded_ranges: Mapping[str, str] = field(default_factory=dict)
    batches: int = 0
    samples: int | None = None
    measuring_seconds: float = field(default=0.0, compare=False)

    def table(self) -> str:
        """Return the steps as a table of text, as wide as the terminal; 120 columns where stdout is none."""
        console = Console(width=text_width(_WIDTH), record=True, file=io.StringIO())
        console.print(self)
        return "\n".join(line.rstrip() for line in console.export_text().splitlines())

    def __str__(self) -> str:
        return self.table()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(f"calibration: {self._data}", style="italic")
        yield self._rich_table()
        for note in self.notes:
            yield Text(note, style="dim")

    def _rich_table(self) -> Table:
        table = Table("pass")
        is_measured = any(step.sqnr_after_db is not None for step in self.steps)
        for heading in ("SQNR before", "after", "") if is_measured else ():
            table.add_column(heading, justify="right")
        table.add_column("seconds", justify="right")
        for step in self.steps:
            figures = (_decibel(step.sqnr_before_db), _decibel(step.sqnr_after_db), step.verdict)
            measured = figures if is_measured else ()
            table.add_row(Text(literal(step.name)), *measured, f"{step.seconds:.2f}")
        if is_measured:
            table.add_row(Text("measuring", style="dim"), "", "", "", f"{self.measuring_seconds:.2f}")
        return table

    @property
    def _data(self) -> str:
        if not self.batches:
            return "no data"
        batches = _counted(self.batches, "batch", "es")
        return batches if self.samples is None else f"{_counted(self.samples, 'sample', 's')} in {batches}"


def _counted(count: int, one: str, plural: str) -> str:
    return f"{count} {one}{'' if count == 1 else plural}"


def _decibel(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} dB"
