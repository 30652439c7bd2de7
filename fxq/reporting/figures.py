"""What the page draws, as figures of Bokeh: a dot for each layer and group, and a histogram; the graph is elsewhere.

Colors are names of variables of the style, which are others in the dark. What Bokeh draws around the data reads them
itself (through its variables "--bk-..."); for the data, they stand in the tags of glyphs, and the script hands them on.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    Model,
    Quad,
    Range1d,
    Scatter,
    VBar,
)
from bokeh.models.annotations import BoxAnnotation, Legend, LegendItem, Span
from bokeh.models.glyph import Glyph
from bokeh.plotting import figure

from fxq.comparison_report import Comparison
from fxq.layer_report import decibel
from fxq.literal import literal
from fxq.sensitivity_report import Sensitivity

Some = TypeVar("Some", bound=Glyph)

_LEGEND = ".bk-label { color: var(--dim) !important; }"  # Bokeh reads its color before it is in the page
_MARKERS = (("circle", "quantized", 7), ("square", "second", 6), ("triangle", "third", 6))


def as_item(drawn: Model) -> dict[str, Any]:
    """Return a figure as plain data for ``Bokeh.embed.embed_item``, the same whatever was drawn before it."""
    numbers: dict[str, str] = {}
    found: dict[str, Any] = _renumbered(dict(json_item(drawn, ID("figure"))), numbers)
    return found


def colored(glyph: Some, **colors: str) -> Some:
    """Return the glyph with a variable of the style for each of these properties of it."""
    glyph.tags = [colors]
    return glyph


def layer_dots(comparison: Comparison) -> figure | None:
    """Return the SQNR of each layer: its own, that with all before it, and that of its weights."""
    series = {
        name: [None if found is None else found.sqnr_db for found in (getattr(layer, name) for layer in comparison)]
        for name in ("local", "accumulated", "weight")
    }
    texts = {name: [decibel(value) or "–" for value in values] for name, values in series.items()}
    return _dots([layer.path for layer in comparison], series, texts, "SQNR in dB")


def group_dots(sensitivity: Sensitivity) -> figure | None:
    """Return what the model is worth with each group alone quantized, or alone in float."""
    name = "quantized alone" if sensitivity.mode == "one_quantized" else "alone in float"
    values = [group.value for group in sensitivity]
    texts = [f"{value:.4g}" if sensitivity.has_metric else decibel(value) for value in values]
    unit = "metric" if sensitivity.has_metric else "SQNR in dB"
    return _dots([", ".join(group.paths) for group in sensitivity], {name: values}, {name: texts}, unit)


def histogram() -> figure:
    """Return a histogram without its data: the script has those, and draws one for each tensor that is looked at."""
    drawn = _figure(110, x_range=Range1d(), y_range=Range1d(start=0.5), y_axis_type="log")
    bins = ColumnDataSource({"left": [], "right": [], "count": []}, name="bins")
    bars = Quad(left="left", right="right", top="count", bottom=0.5, line_width=0.4)
    renderer = drawn.add_glyph(bins, colored(bars, fill_color="quantized", line_color="quantized"))
    drawn.add_tools(HoverTool(renderers=[renderer], tooltips="@count{0,0} values<br>@left to @right"))
    for name in ("below", "above"):
        beyond: dict[str, str | None] = {"--bk-fill-color": "var(--bad)"}
        drawn.add_layout(BoxAnnotation(name=name, fill_alpha=0.13, line_width=0, styles=beyond, visible=False))
    for name in ("low", "high"):
        bound: dict[str, str | None] = {"--bk-line-color": "var(--bad)"}
        drawn.add_layout(Span(name=name, location=0, dimension="height", line_dash=[3, 2], styles=bound, visible=False))
    drawn.yaxis.visible = drawn.grid.visible = False
    drawn.xaxis.ticker = BasicTicker(desired_num_ticks=4, num_minor_ticks=0)
    return drawn


def _dots(
    paths: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    texts: Mapping[str, Sequence[str]],
    unit: str,
) -> figure | None:
    """Return a dot for each value of each path; None where no value is finite."""
    shown = {name: [_finite_or_nan(value) for value in values] for name, values in series.items()}
    finite = [value for values in shown.values() for value in values if not math.isnan(value)]
    if not finite:
        return None
    space = 0.06 * (max(finite) - min(finite)) or 1
    heights = Range1d(start=min(finite) - space, end=max(finite) + space)
    words = {_in_words(name): text for name, text in texts.items()}
    columns = {"path": [literal(path) for path in paths], "place": range(len(paths))}
    source = ColumnDataSource({name: list(column) for name, column in (columns | shown | words).items()})
    drawn = _figure(230, x_range=Range1d(start=-0.5, end=len(paths) - 0.5), y_range=heights)
    _add_pointer(drawn, source, heights, list(series))
    items = []
    for name, (marker, color, size) in zip(series, _MARKERS, strict=False):
        dots = colored(Scatter(x="place", y=name, marker=marker, size=size), fill_color=color, line_color=color)
        items.append(LegendItem(label=name, renderers=[drawn.add_glyph(source, dots)]))
    legend = Legend(items=items, orientation="horizontal", location="left", spacing=16, stylesheets=[_LEGEND])
    legend.border_line_alpha = legend.background_fill_alpha = 0
    drawn.add_layout(legend, "below")
    drawn.yaxis.axis_label, drawn.yaxis.axis_label_text_font_style = unit, "normal"
    drawn.xaxis.ticker = FixedTicker(ticks=[])
    drawn.xgrid.visible = False
    return drawn


def _add_pointer(drawn: figure, source: ColumnDataSource, heights: Range1d, names: Sequence[str]) -> None:
    """Show the values of the path that the pointer is above or below: dots are too small to be met."""
    unseen, seen = (
        VBar(x="place", width=1, bottom=heights.start, top=heights.end, line_alpha=0, fill_alpha=alpha)
        for alpha in (0, 0.13)
    )
    columns = drawn.add_glyph(source, unseen, hover_glyph=colored(seen, fill_color="select"))
    tooltips = "<br>".join(("<b>@path</b>", *(f"{name} @{{{_in_words(name)}}}" for name in names)))
    drawn.add_tools(HoverTool(renderers=[columns], tooltips=tooltips, point_policy="follow_mouse"))


def _in_words(name: str) -> str:
    return f"{name} in words"


def _figure(height: int, **more: Any) -> figure:
    """Return an empty figure as wide as its place, which leaves drags and the wheel to the page."""
    return figure(height=height, sizing_mode="stretch_width", min_border=4, toolbar_location=None, tools="", **more)


def _finite_or_nan(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan


def _renumbered(value: Any, numbers: dict[str, str]) -> Any:
    """Return data of Bokeh with its models numbered from 0; Bokeh counts them since the process began."""
    if isinstance(value, dict):
        return {
            key: numbers.setdefault(one, f"p{len(numbers)}") if key in ("id", "root_id") else _renumbered(one, numbers)
            for key, one in value.items()
        }
    return [_renumbered(one, numbers) for one in value] if isinstance(value, list | tuple) else value
