"""Timing in turn, and tables that show a limit and a goal beside each figure."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Timings:
    """Times of calls that were made in turn.

    Args:
        rounds_ms: of each call, its time in each round.
    """

    rounds_ms: Mapping[str, Sequence[float]]

    def median_ms(self, name: str) -> float:
        """Return the usual time of a call."""
        return statistics.median(self.rounds_ms[name])

    def ratio(self, name: str, to: str) -> float:
        """Return the median over the rounds of one time divided by another: what slows a whole round cancels out."""
        pairs = zip(self.rounds_ms[name], self.rounds_ms[to], strict=True)
        return statistics.median(one / other for one, other in pairs)


def time_in_turn(calls: Mapping[str, Callable[[], object]], rounds: int) -> Timings:
    """Make the calls in turn, so that a busy machine slows all of them, and return their times.

    Every second round runs backwards, so that none always follows the same neighbour, which leaves it a cold cache.
    One round more is made first and not counted: memory is allocated and kernels are chosen in it.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 1):
        for name in list(calls)[:: -1 if index % 2 else 1]:
            start = time.perf_counter()
            calls[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return Timings({name: values[1:] for name, values in times.items()})


@dataclass(frozen=True)
class Figure:
    """One measured number and what it should be.

    Args:
        name: what was measured.
        value: the number.
        unit: "x" for a ratio, "s", "ms".
        limit: the worst that is acceptable; None where there is nothing to hold it to.
        goal: what we want.
        higher_is_better: limit and goal are lower bounds.
        note: how it came about.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    goal: float | None = None
    higher_is_better: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        """Return "goal", "limit" or "missed"; nothing to compare with gives an empty text."""
        sign = -1 if self.higher_is_better else 1
        if self.goal is not None and sign * self.value <= sign * self.goal:
            return "goal"
        if self.limit is not None and sign * self.value <= sign * self.limit:
            return "limit"
        return "" if self.limit is None and self.goal is None else "missed"


def table_of(title: str, figures: list[Figure]) -> Table:
    """Return the figures as a table; what missed its limit is red."""
    table = Table(title=title, title_justify="left")
    table.add_column("measured")
    for heading in ("value", "limit", "goal"):
        table.add_column(heading, justify="right")
    table.add_column("within")
    table.add_column("note", overflow="fold")
    colours = {"goal": "green", "limit": "yellow", "missed": "red", "": ""}
    for figure in figures:
        shown = [_text(number, figure.unit) for number in (figure.value, figure.limit, figure.goal)]
        verdict = figure.verdict
        colour = colours[verdict]
        table.add_row(figure.name, *shown, f"[{colour}]{verdict}[/]" if colour else "", figure.note)
    return table


def _text(number: float | None, unit: str) -> str:
    return "" if number is None else f"{number:.2f} {unit}"
