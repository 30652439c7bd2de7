"""Comparison: how far each layer of a quantized model is from the float model."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from fxq.compare.figures import Figures
from fxq.layer_report import as_text, decibel, plot_bars
from fxq.literal import literal


@dataclass(frozen=True)
class LayerComparison:
    """One layer of the quantized model against the float one.

    Args:
        path: the name that a rule has for it.
        kind: what it computes, such as "conv".
        weight: its quantized weights against the float ones; None where none is quantized, or none could be read back.
        local: its output, given what the float model computes before it: its own error alone.
        accumulated: its output in the quantized model: with the errors of all before it.
    """

    path: str
    kind: str
    weight: Figures | None
    local: Figures | None
    accumulated: Figures | None

    @property
    def local_db(self) -> float:
        """The SQNR of its own error; infinite where the float output is zero throughout."""
        found = None if self.local is None else self.local.sqnr_db
        return math.inf if found is None else found


@dataclass(frozen=True)
class Comparison:
    """What ``fxq.compare`` returns: iterate over it, ``print`` it, or look a layer up by its path.

    Args:
        layers: those that compute with quantized tensors, in the order in which they run.
        outputs: of the model, by name: the quantized model against the float one.
        samples: how many were compared.
        notes: what is to be known about the figures.
    """

    layers: tuple[LayerComparison, ...]
    outputs: Mapping[str, Figures] = field(default_factory=dict)
    samples: int = 0
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[LayerComparison]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, path: str) -> LayerComparison:
        """Return a layer by its path; KeyError where there is none."""
        for layer in self.layers:
            if layer.path == path:
                return layer
        raise KeyError(path)

    def worst(self, count: int = 5) -> list[LayerComparison]:
        """Return the layers with the largest error of their own, the worst first.

        ``recipe.with_rules(*((layer.path, None) for layer in comparison.worst(2)))`` leaves two in float.
        """
        return sorted(self.layers, key=lambda layer: layer.local_db)[:count]

    def table(self) -> str:
        """Return a table of text, as wide as the terminal; 120 columns where stdout is none."""
        return as_text(self)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a picture of the SQNR of each layer; needs matplotlib (``pip install 'fxq[plot]'``)."""
        series = {
            "local": [layer.local.sqnr_db if layer.local else None for layer in self.layers],
            "accumulated": [layer.accumulated.sqnr_db if layer.accumulated else None for layer in self.layers],
            "weight": [layer.weight.sqnr_db if layer.weight else None for layer in self.layers],
        }
        plot_bars(path, [layer.path for layer in self.layers], series, "SQNR in dB")

    def __str__(self) -> str:
        return self.table()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        outputs = ", ".join(f"{name} {_in_words(found)}" for name, found in self.outputs.items())
        yield Text(literal(f"{len(self.layers)} layers on {self.samples} samples; outputs: {outputs}"), style="italic")
        table = Table("layer", "operation")
        for heading in ("weight", "local", "accumulated", "cosine", "MSE"):
            table.add_column(heading, justify="right")
        for layer in self.layers:
            figures = (layer.weight, layer.local, layer.accumulated)
            shown = ["" if one is None else decibel(one.sqnr_db) for one in figures]
            last = layer.accumulated
            cosine = "" if last is None or last.cosine is None else f"{last.cosine:.4f}"
            table.add_row(
                Text(literal(layer.path)), layer.kind, *shown, cosine, "" if last is None else f"{last.mse:.3g}"
            )
        yield table
        yield Text("SQNR; local: a layer's own error; cosine and MSE are of the accumulated one", style="dim")
        for note in self.notes:
            yield Text(literal(note), style="dim")


def _in_words(found: Figures) -> str:
    return f"0 in float, MSE {found.mse:.3g}" if found.sqnr_db is None else decibel(found.sqnr_db)
