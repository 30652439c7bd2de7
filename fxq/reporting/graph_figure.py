"""The graph as a figure of Bokeh: a box for each operation, and a line for each tensor between two of them.

One unit is a pixel at the scale of a small graph; the script moves, zooms, marks and labels.
"""

from collections.abc import Iterable, Sequence
from itertools import compress
from operator import not_

import numpy as np
from bokeh.core.properties import value
from bokeh.models import (
    CDSView,
    ColumnDataSource,
    GroupFilter,
    HoverTool,
    IndexFilter,
    MultiLine,
    PanTool,
    Range1d,
    Rect,
    TapTool,
    Text,
    WheelZoomTool,
)
from bokeh.models.glyph import Glyph
from bokeh.models.renderers import DataRenderer
from bokeh.plotting import figure
from bokeh.transform import dodge
from rich.cells import cell_len

from fxq.literal import literal
from fxq.reporting.content import GraphEdge, GraphNode
from fxq.reporting.figures import colored
from fxq.reporting.layout import Layout

_COLUMN, _LAYER, _WIDTH, _HEIGHT = 190, 62, 164, 38
_FONT, _CELLS = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace", 21  # as many fit into a box
_COLORS = {"quantized": ("quantized-fill", "quantized"), "float": ("float-fill", "float"), "other": ("card", "dim")}


def states_of(nodes: Iterable[GraphNode], in_float: Iterable[str]) -> list[str]:
    """Return what each node is: "quantized", "float" where it is one of these layers, or "other"."""
    layers = set(in_float)

    def state(node: GraphNode) -> str:
        if node.quantized and not node.reason:
            return "quantized"
        return "float" if {node.path, node.node} & layers else "other"

    return [state(node) for node in nodes]


def graph_figure(
    nodes: Sequence[GraphNode], edges: Sequence[GraphEdge], layout: Layout, states: Sequence[str]
) -> figure:
    """Return the graph; its ranges hold all of it."""
    x, y = np.array(layout.x) * _COLUMN, -np.array(layout.y, float) * _LAYER
    lanes = [lane * _COLUMN for lane in layout.lanes if lane is not None]
    left, right = _around([*x.tolist(), *lanes], _WIDTH / 2 + 20)
    bottom, top = _around(y.tolist(), _LAYER)
    drawn = figure(
        x_range=Range1d(start=left, end=right), y_range=Range1d(start=bottom, end=top), sizing_mode="stretch_both",
        toolbar_location=None, tools="", lod_threshold=None, outline_line_color=None,
        min_border=1,  # Bokeh never clears the outermost half of a pixel
    )  # fmt: skip
    drawn.axis.visible = drawn.grid.visible = False
    lines = [_line(x, y, edge, lane) for edge, lane in zip(edges, layout.lanes, strict=True)]
    in_integers = [edge.quantizer is not None for edge in edges]
    _add_lines(drawn, compress(lines, map(not_, in_integers)), MultiLine(line_width=1.3, line_dash=[5, 4]), "dim")
    _add_lines(drawn, compress(lines, in_integers), MultiLine(line_width=2.2), "quantized")
    source = ColumnDataSource({"x": x, "y": y, "state": list(states), **_names_of(nodes)}, name="nodes")
    _add_boxes(drawn, source)
    _add_labels(drawn, source)
    return drawn


def _around(values: Sequence[float], space: float) -> tuple[float, float]:
    """Return the lowest and the highest value, with space beyond; an empty graph has a place, too."""
    return min(values, default=0.0) - space, max(values, default=0.0) + space


def _line(x: np.ndarray, y: np.ndarray, edge: GraphEdge, lane: float | None) -> np.ndarray:
    """Return the points of a line from below one box to above the other, shape (points, 2); along the lane, if any."""
    begin, end = (x[edge.source], y[edge.source] - _HEIGHT / 2), (x[edge.target], y[edge.target] + _HEIGHT / 2)
    if lane is None:
        return np.array((begin, end)) if begin[0] == end[0] else _curve(begin, end, 14)
    across = lane * _COLUMN
    down, up = _curve(begin, (across, begin[1] - 26), 20), _curve((across, end[1] + 26), end, 20)
    return np.concatenate((down, up))


def _curve(begin: tuple[float, float], end: tuple[float, float], bend: float) -> np.ndarray:
    """Return points of a cubic curve that begins and ends downwards, shape (points, 2)."""
    t = np.linspace(0, 1, 13)[:, None]
    corners = np.array((begin, (begin[0], begin[1] - bend), (end[0], end[1] + bend), end))
    weights = np.concatenate(((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3), axis=1)
    points: np.ndarray = np.round(weights @ corners, 1)
    return points


def _add_lines(drawn: figure, lines: Iterable[np.ndarray], glyph: MultiLine, color: str) -> None:
    columns = [(line[:, 0].tolist(), line[:, 1].tolist()) for line in lines]
    source = ColumnDataSource({"xs": [xs for xs, _ in columns], "ys": [ys for _, ys in columns]})
    drawn.add_glyph(source, colored(glyph, line_color=color))


def _names_of(nodes: Sequence[GraphNode]) -> dict[str, list[str]]:
    names = [literal(node.path or node.node) for node in nodes]
    words = [literal(f"{node.kind} {'×'.join(map(str, node.shape or ()))}".strip()) for node in nodes]
    return {
        "name": names,
        "words": words,
        "name label": [_shortened(name) for name in names],
        "words label": [_shortened(word) for word in words],
    }


def _shortened(text: str) -> str:
    """Return text that fits into a box; the end of a path tells more than its beginning."""
    if cell_len(text) <= _CELLS:
        return text
    text = text[-_CELLS:]
    while cell_len(text) >= _CELLS:
        text = text[1:]
    return f"…{text}"


def _add_boxes(drawn: figure, source: ColumnDataSource) -> None:
    boxes: list[DataRenderer] = []
    for state, (fill, line) in _COLORS.items():
        box = colored(_box(1.3), fill_color=fill, line_color=line)
        view = CDSView(filter=GroupFilter(column_name="state", group=state))
        selected = colored(_box(3.5), fill_color=fill, line_color="select")
        boxes.append(drawn.add_glyph(source, box, selection_glyph=selected, nonselection_glyph=box, view=view))
    match = _box(2.5)
    match.fill_alpha = 0
    _add_still(drawn, source, colored(match, line_color="select"), CDSView(filter=_no_nodes("matches")))
    wheel = WheelZoomTool()
    hover = HoverTool(renderers=boxes, tooltips="<b>@name</b><br>@words")
    drawn.add_tools(PanTool(), wheel, TapTool(renderers=boxes), hover)
    drawn.toolbar.active_scroll = wheel


def _box(line_width: float) -> Rect:
    return Rect(x="x", y="y", width=_WIDTH, height=_HEIGHT, line_width=line_width)


def _no_nodes(name: str) -> IndexFilter:
    """Return a filter that the script finds by its name, and puts nodes into."""
    return IndexFilter(indices=[], name=name)


def _add_labels(drawn: figure, source: ColumnDataSource) -> None:
    view = CDSView(filter=_no_nodes("labelled"))
    for name, color, style, up in (("name label", "ink", "bold", 8), ("words label", "dim", "normal", -9)):
        text = Text(x=dodge("x", 7 - _WIDTH / 2), y=dodge("y", up), text=name, name=name)
        text.text_font, text.text_font_style, text.text_baseline = value(_FONT), style, "middle"
        _add_still(drawn, source, colored(text, text_color=color), view)


def _add_still(drawn: figure, source: ColumnDataSource, glyph: Glyph, view: CDSView) -> None:
    """Add what looks the same whether its node is selected or not."""
    drawn.add_glyph(source, glyph, selection_glyph=glyph, nonselection_glyph=glyph, view=view)
