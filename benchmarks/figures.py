"""Tables that show a limit and a goal beside each figure."""

from dataclasses import dataclass

from rich.table import Table


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
