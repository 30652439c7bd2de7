"""What reports about layers share: a table of text as wide as the terminal, and a plot of bars."""

import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from fxq.errors import ExportError, MissingExtraError
from fxq.explanation import text_width
from fxq.output_file import OutputFile

_WIDTH = 120
_INCH_PER_ROW, _LEAST_INCHES = 0.22, 2.5


def as_text(renderable: Any) -> str:
    """Return what ``print`` of rich shows, as wide as the terminal; 120 columns where stdout is none."""
    console = Console(width=text_width(_WIDTH), record=True, file=io.StringIO())
    console.print(renderable)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def decibel(value: float | None) -> str:
    """Return an SQNR in words."""
    return "" if value is None else "exact" if value == math.inf else f"{value:.1f} dB"


def plot_place(path: str | os.PathLike[str]) -> OutputFile:
    """Return the place of a picture; its suffix says in which format, such as ``layers.png``, ``.svg`` or ``.pdf``.

    Raises:
        ExportError: it cannot be written there, or the suffix is of no format.
        MissingExtraError: matplotlib is not installed.
    """
    place, formats = OutputFile(path), sorted(_empty_figure(1).canvas.get_supported_filetypes())
    if place.path.suffix[1:].lower() not in formats:
        raise ExportError(
            f"cannot write {place.path}: the suffix says the format, such as layers.png; there are {', '.join(formats)}"
        )
    return place


def plot_bars(
    path: str | os.PathLike[str], names: Sequence[str], series: Mapping[str, Sequence[float | None]], label: str
) -> None:
    """Write a picture with a row of bars for each name, first on top.

    Args:
        path: of the file; errors as of :func:`plot_place`.
        names: one for each row.
        series: by their name in the legend; what is None or infinite has no bar.
        label: of the axis, with its unit.
    """
    place, figure = plot_place(path), _empty_figure(len(names))
    axes, height = figure.subplots(), 0.8 / len(series)
    for index, (name, values) in enumerate(series.items()):
        rows = [(row, value) for row, value in enumerate(values) if value is not None and math.isfinite(value)]
        places = [row + (index - (len(series) - 1) / 2) * height for row, _ in rows]
        axes.barh(places, [value for _, value in rows], height, label=name)
    axes.set_yticks(range(len(names)), names, fontsize="x-small")
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.legend()
    with place.staging() as folder:
        figure.savefig(folder / place.path.name)
        place.place(folder / place.path.name, is_onnx=False)


def _empty_figure(rows: int) -> Any:
    try:
        # Optional, and it takes a second. No pyplot, which would pick a window system.
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("a plot needs matplotlib: pip install 'fxq[plot]'") from error
    return Figure(figsize=(8, max(_LEAST_INCHES, 1 + _INCH_PER_ROW * rows)), layout="constrained")
