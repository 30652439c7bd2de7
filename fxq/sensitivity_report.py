"""Sensitivity: what the model is worth with one group of operations quantized, or with all but one."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from fxq.layer_report import as_text, decibel, plot_bars
from fxq.literal import literal


@dataclass(frozen=True)
class GroupSensitivity:
    """One group of operations.

    Args:
        paths: the names that rules have for its operations, first that of the layer.
        kind: what the layer computes, such as "conv".
        value: the metric, or the SQNR in dB, with this group alone quantized, or alone in float.
        multiplications: its share of those of the whole model.
    """

    paths: tuple[str, ...]
    kind: str
    value: float
    multiplications: float

    @property
    def path(self) -> str:
        """The name of the layer."""
        return self.paths[0]


@dataclass(frozen=True)
class Sensitivity:
    """What ``fxq.sensitivity`` returns: iterate over it, ``print`` it, or look a group up by a path.

    Args:
        groups: in graph order.
        mode: "one_quantized" or "one_float".
        has_metric: values are those of a metric, not dB.
        float_value: with all groups in float; infinite in dB.
        quantized_value: with all of them quantized.
        samples: how many were kept to measure on.
        notes: what is to be known about the values.
    """

    groups: tuple[GroupSensitivity, ...]
    mode: str
    has_metric: bool
    float_value: float
    quantized_value: float
    samples: int
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[GroupSensitivity]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, path: str) -> GroupSensitivity:
        """Return the group with an operation of this path; KeyError where there is none."""
        for group in self.groups:
            if path in group.paths:
                return group
        raise KeyError(path)

    def worst(self, count: int = 5) -> list[GroupSensitivity]:
        """Return the most sensitive groups, the worst first.

        ``recipe.with_rules(*((group.path, None) for group in found.worst(2)))`` leaves two layers in float; with
        ``for group in ... for path in group.paths``, the residual adds that they absorb too.
        """
        return sorted(self.groups, key=lambda group: group.value, reverse=self.mode == "one_float")[:count]

    def table(self) -> str:
        """Return a table of text, the most sensitive first, as wide as the terminal; 120 columns without one."""
        return as_text(self)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a picture of the values in graph order; needs matplotlib (``pip install 'fxq[plot]'``)."""
        label = "metric" if self.has_metric else "SQNR in dB"
        plot_bars(path, [one.path for one in self.groups], {self._heading: [one.value for one in self.groups]}, label)

    def __str__(self) -> str:
        return self.table()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        title = f"all quantized: {self._text(self.quantized_value)}; in float: {self._text(self.float_value)}"
        yield Text(title, style="italic")
        table = Table("group", "operation")
        for heading in (self._heading, "multiplications"):
            table.add_column(heading, justify="right")
        for group in self.worst(len(self)):
            name = Text(literal(", ".join(group.paths)))
            table.add_row(name, group.kind, self._text(group.value), f"{100 * group.multiplications:.1f} %")
        yield table
        for note in self.notes:
            yield Text(literal(note), style="dim")

    @property
    def _heading(self) -> str:
        return "quantized alone" if self.mode == "one_quantized" else "alone in float"

    def _text(self, value: float) -> str:
        return f"{value:.5g}" if self.has_metric else decibel(value)
