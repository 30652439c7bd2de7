"""BenchReport: how long files take in the runtimes that are here, and what can be told of the difference."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from fxq.layer_report import as_text
from fxq.literal import literal
from fxq.runtimes import Latency

# A file whose quartiles are further apart than this share of its median says little about the machine's usual speed.
_NOISY = 0.25
# From here on a quartile is not the fastest or slowest round, nor made of it: one odd round moves neither.
_FEWEST_ROUNDS = 5


@dataclass(frozen=True)
class BenchRow:
    """A file in a runtime.

    Args:
        runtime: its name.
        path: of the file.
        latency: the time of each round, in milliseconds.
        ratios: quartiles over the rounds of its time divided by that of the first file: 2 is twice as slow; None for
            the first file itself, and where the two were not timed in turn.
    """

    runtime: str
    path: str
    latency: Latency
    ratios: tuple[float, float, float] | None = None

    @property
    def ratio(self) -> float | None:
        """How many times as long as the first file it takes, the median over the rounds."""
        return None if self.ratios is None else self.ratios[1]

    @property
    def is_certain(self) -> bool:
        """Is the difference to the first file, if any, larger than the noise: both quartiles are on one side of 1?

        Of fewer than 5 rounds nobody knows.
        """
        return self.ratios is None or (not self.has_few_rounds and (self.ratios[0] > 1 or self.ratios[2] < 1))

    @property
    def has_few_rounds(self) -> bool:
        """Are there too few rounds to tell a difference from noise?"""
        return len(self.latency.rounds_ms) < _FEWEST_ROUNDS

    @property
    def is_noisy(self) -> bool:
        """Are its rounds far apart?"""
        return self.latency.spread_ms > _NOISY * self.latency.median_ms

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "runtime": self.runtime,
            "path": self.path,
            "median_ms": self.latency.median_ms,
            "spread_ms": self.latency.spread_ms,
            "rounds": len(self.latency.rounds_ms),
            "ratio": self.ratio,
            "ratio_quartiles": self.ratios,
            "is_certain": self.is_certain,
            "is_noisy": self.is_noisy,
        }


@dataclass(frozen=True)
class BenchReport:
    """What ``fxq.bench`` returns: iterate over its rows, or ``print`` it.

    Args:
        rows: for each runtime, each file.
        inputs: what was run, in words, for each file.
        notes: runtimes that are not here or did not take the files, and why.
    """

    rows: tuple[BenchRow, ...]
    inputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[BenchRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def table(self) -> str:
        """Return a table of text, as wide as the terminal; 120 columns where stdout is none."""
        return as_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "inputs": list(self.inputs),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return self.table()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.inputs:
            yield Text(literal(line), style="italic")
        table = Table("runtime", padding=(0, 2, 0, 0), box=None)
        table.add_column("file", overflow="fold")
        for heading in ("median ms", "spread ms", "ratio"):
            table.add_column(heading, justify="right")
        table.add_column("the first file is", overflow="fold")
        for row in self.rows:
            latency = (f"{row.latency.median_ms:.3f}", f"{row.latency.spread_ms:.3f}")
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            table.add_row(row.runtime, Text(literal(row.path)), *latency, ratio, _verdict(row))
        yield table
        yield Text(
            "ratio: time divided by the first file's, median over rounds in turn; spread: between quartiles; "
            "busy: spread above a quarter of the median",
            style="dim",
        )
        if any(row.ratios is not None and row.has_few_rounds for row in self.rows):
            yield Text(
                f"of fewer than {_FEWEST_ROUNDS} rounds a single odd one moves a quartile: no difference is certain",
                style="dim",
            )
        for note in self.notes:
            yield Text(literal(note), style="dim")


def _verdict(row: BenchRow) -> Text:
    words = _difference(row), Text("(a busy machine)" if row.is_noisy else "", style="yellow")
    return Text(" ").join(filter(None, words))


def _difference(row: BenchRow) -> Text:
    if row.ratios is None:
        return Text()
    low, middle, high = row.ratios
    if row.has_few_rounds:
        return Text(f"too few rounds to tell: {len(row.latency.rounds_ms)}", style="yellow")
    if not row.is_certain:
        return Text(f"too noisy to tell: {low:.2f} to {high:.2f}", style="yellow")
    return Text(f"{middle:.2f} times as fast" if middle > 1 else f"slower, {middle:.2f} times as fast")
