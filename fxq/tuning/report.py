"""Tuned: the model that is fastest here, what was left in float for that, and what was tried."""

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text
from torch.fx import GraphModule

from fxq.compare.quality import Quality
from fxq.layer_report import as_text
from fxq.literal import literal
from fxq.recipe import Recipe
from fxq.runtimes import Latency
from fxq.tuning.timing import Speedup


@dataclass(frozen=True)
class Trial:
    """A file that was timed, in turn with the fastest by then.

    Args:
        why: what was left in float, in words.
        groups: how many groups of operations that was.
        latency: of the file.
        speedup: how many times as fast as the fastest by then.
        verdict: "faster" and so kept, "slower", "no difference" that can be told, or "not again": faster at first, and
            not in a second measurement, or not timed again, as a note says.
    """

    why: str
    groups: int
    latency: Latency
    speedup: Speedup
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "why": self.why,
            "groups": self.groups,
            "median_ms": self.latency.median_ms,
            "spread_ms": self.latency.spread_ms,
            "rounds": len(self.latency.rounds_ms),
            "speedup": self.speedup.middle,
            "speedup_interval": (self.speedup.low, self.speedup.high),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Measured:
    """A converted model, and how fast and how good it is.

    Args:
        converted: as of ``fxq.convert``.
        recipe: that made it.
        latency: of its file, in turn with the others; it has no rounds where that did not run.
        quality: against the float model; None where it was not compared.
    """

    converted: GraphModule = field(repr=False)
    recipe: Recipe
    latency: Latency
    quality: Quality | None


@dataclass(frozen=True)
class Tuned:
    """What ``fxq.tune`` returns.

    Args:
        result: the fastest model: its ``converted`` and ``recipe`` are those of this object.
        default: what the recipe makes without further rules.
        in_float_latency: of the model with nothing quantized, timed in the same rounds; none where it did not run.
        in_float: what the result leaves in float: for each group, the names that rules have for its operations.
        groups: how many groups could be quantized.
        reasons: why, in words: what was kept, in order.
        runtime: its name and version, threads and inputs.
        noise: how far apart, as a share, one file was from itself: smaller differences were not believed.
        trials: what was tried, in order.
        notes: what was not reached or not finished, and why.
        seconds: it took.
    """

    result: Measured
    default: Measured
    in_float_latency: Latency
    in_float: tuple[tuple[str, ...], ...]
    groups: int
    reasons: tuple[str, ...]
    runtime: str
    noise: float
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def converted(self) -> GraphModule:
        """The fastest model, for ``fxq.export_onnx``."""
        return self.result.converted

    @property
    def recipe(self) -> Recipe:
        """That made it, with a rule for each operation in float; ``recipe.to_toml()`` is text."""
        return self.result.recipe

    @property
    def speedup(self) -> Speedup:
        """How many times as fast as the default it is."""
        return Speedup.of(self.result.latency, self.default.latency)

    def table(self) -> str:
        """Return what was found as a table of text, as wide as the terminal; 120 columns where stdout is none."""
        return as_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "runtime": self.runtime,
            "median_ms": {
                "tuned": _median_ms(self.result.latency),
                "default": _median_ms(self.default.latency),
                "float": _median_ms(self.in_float_latency),
            },
            "speedup": self.speedup.middle if self.speedup.is_known else None,
            "speedup_interval": (self.speedup.low, self.speedup.high) if self.speedup.is_known else None,
            "noise": self.noise,
            "in_float": [list(paths) for paths in self.in_float],
            "groups": self.groups,
            "reasons": list(self.reasons),
            "sqnr_db": {"tuned": _sqnr_db(self.result), "default": _sqnr_db(self.default)},
            "trials": [trial.to_dict() for trial in self.trials],
            "notes": list(self.notes),
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        return self.table()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(literal(self.runtime), style="italic")
        tried = Table("left in float", padding=(0, 2, 0, 0), box=None)
        for heading in ("groups", "median ms", "spread ms", "times as fast", ""):
            tried.add_column(heading, justify="right" if heading else "left")
        for trial in self.trials:
            times = (f"{trial.latency.median_ms:.3f}", f"{trial.latency.spread_ms:.3f}")
            tried.add_row(Text(literal(trial.why)), str(trial.groups), *times, str(trial.speedup), trial.verdict)
        yield tried
        yield Text("times as fast: as the fastest by then, median over rounds in turn, and its bounds", style="dim")
        yield self._summary()

    def _summary(self) -> Table:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        speedups = {"the default": self.speedup, "float": Speedup.of(self.result.latency, self.in_float_latency)}
        known = [f"{speedup} times as fast as {name}" for name, speedup in speedups.items() if speedup.is_known]
        table.add_row("tuned", f"{self.result.latency.usual}, {_quality(self.result)}")
        table.add_row("", ", ".join(known) or "not compared with the default, nor with float")
        table.add_row("default", f"{self.default.latency.usual}, {_quality(self.default)}")
        table.add_row("float", self.in_float_latency.usual)
        table.add_row("in float", f"{len(self.in_float)} of {self.groups} groups")
        for reason in self.reasons:
            table.add_row("", Text(literal(reason)))
        table.add_row("tried", f"{len(self.trials)} in {self.seconds:.0f} s; noise {100 * self.noise:.1f} %")
        for note in self.notes:
            table.add_row("note", Text(literal(note)))
        return table


def _sqnr_db(one: Measured) -> float | None:
    return None if one.quality is None else one.quality.sqnr_db


def _median_ms(latency: Latency) -> float | None:
    return latency.median_ms if latency.rounds_ms else None


def _quality(one: Measured) -> str:
    return "not compared with the float model" if one.quality is None else literal(str(one.quality))
