"""The page: one HTML file with its style, its script and its data inside, which asks for nothing else.

Names come from the model and may be anything. The template escapes what it writes, the data are JSON in which no
character of markup is left, the script sets text and never markup, and the page's policy allows these scripts alone, by
their checksums, and no network. Styles need no checksum: Bokeh adds some, and without a network they ask for nothing.
Graph and plots are figures of Bokeh, whose script comes with its package.
"""

import base64
import hashlib
import json
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from bokeh.plotting import figure
from bokeh.resources import Resources
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fxq.layer_report import decibel
from fxq.literal import literal
from fxq.reporting.content import Report
from fxq.reporting.figures import as_item, group_dots, histogram, layer_dots
from fxq.reporting.graph_figure import graph_figure, states_of
from fxq.reporting.layout import lay_out
from fxq.reporting.places import places_of

_TEMPLATES = files("fxq.reporting") / "templates"
_MARKUP = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def render_page(report: Report) -> str:
    """Return the page of a report."""
    style, script = (_read(name) for name in ("report.css", "report.js"))
    (library, *_) = Resources(mode="inline", components=["bokeh"]).js_raw
    states = states_of(report.nodes, report.coverage.in_float)
    places = places_of(report.findings, report.nodes)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_shown)
    environment.filters |= {"megabytes": _megabytes, "decibel": decibel}
    return environment.from_string(_read("report.html")).render(
        report=report,
        version=version("fxq"),
        style=Markup(style),
        scripts=[Markup(library), Markup(script)],
        data=Markup(as_inert_json({**report.to_dict(), "states": states, "places": places})),
        figures=Markup(as_inert_json(_figures(report, states))),
        policy=f"default-src 'none'; script-src {_checksum(library)} {_checksum(script)}; style-src 'unsafe-inline'",
    )


def as_inert_json(value: Any) -> str:
    """Return JSON in ASCII, in which no text can end the element that holds it."""
    text = json.dumps(value, separators=(",", ":"))
    for character, escaped in _MARKUP.items():
        text = text.replace(character, escaped)
    return text


def _figures(report: Report, states: list[str]) -> dict[str, Any]:
    """Return what is drawn, by the id of its place; a histogram for each that the script draws."""
    layout = lay_out(len(report.nodes), report.edges)
    drawn: dict[str, figure | None] = {
        "drawing": graph_figure(report.nodes, report.edges, layout, states),
        "histogram": histogram(),
        "layers": None if report.comparison is None else layer_dots(report.comparison),
        "sensitivity": None if report.sensitivity is None else group_dots(report.sensitivity),
    }
    return {name: as_item(one) for name, one in drawn.items() if one is not None}


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _checksum(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _shown(value: Any) -> Any:
    """Return text of others as what it is: no character that is not shown."""
    return literal(value, kept="\n") if isinstance(value, str) and not isinstance(value, Markup) else value


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
