"""``fxq passes``: what can stand in a recipe."""

import inspect
import json
from importlib.metadata import entry_points
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fxq.cli.console import print_plain, print_result
from fxq.literal import literal
from fxq.passbase import pass_summary
from fxq.recipe import DEFAULT_PASSES
from fxq.registry import PASSES, Registration, pass_options, registered_pass, registered_passes
from fxq.stage import Stage

_TOLERANCES = {
    "EXACT": "{}: not a bit of the outputs changes",
    "ROUNDING": "{}: outputs change as by sums in another order",
    "LSB": "{}: outputs change by so many of their steps on average",
    "ANY": "{}: it changes numbers on purpose",
}


def run_passes_listing(as_json: bool) -> None:
    """Print all registered passes in the order in which they run."""
    passes = [_describe(name, registration) for name, registration in _in_running_order()]
    if as_json:
        print_plain(json.dumps(passes, indent=2, default=str))
    else:
        print_result(_table(passes))


def run_pass(name: str, as_json: bool) -> None:
    """Print all there is about one pass; a RecipeError if there is none of that name."""
    registration = registered_pass(name)
    found = {**_describe(name, registration), "documentation": inspect.getdoc(registration.pass_type) or ""}
    if as_json:
        print_plain(json.dumps(found, indent=2, default=str))
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    options = ", ".join(f"{option} = {value!r}" for option, value in found["options"].items()) or "none"
    is_default = any(spec.name == name for spec in DEFAULT_PASSES)
    rows = (
        ("pass", name),
        ("stage", found["stage"]),
        ("options", options),
        ("tolerance", _TOLERANCES[registration.pass_type.tolerance.name].format(found["tolerance"])),
        ("package", f"{found['package']} ({found['module']})"),
        (
            "in recipes",
            "all that are built in" if is_default else f'none that is built in; recipe.with_pass("{name}") adds it',
        ),
    )
    for heading, text in rows:
        table.add_row(heading, Text(text))
    print_result(table, Text(f"\n{found['documentation']}"))


def _in_running_order() -> list[tuple[str, Registration]]:
    """Return the passes by name: those of every recipe as they stand there, others where ``with_pass`` puts them."""
    places = {spec.name: index for index, spec in enumerate(DEFAULT_PASSES)}

    def place(item: tuple[str, Registration]) -> tuple[Stage, bool, int, str]:
        name, pass_type = item[0], item[1].pass_type
        return pass_type.stage, pass_type.closes_stage, places.get(name, len(places)), name

    return sorted(registered_passes().items(), key=place)


def _describe(name: str, registration: Registration) -> dict[str, Any]:
    pass_type = registration.pass_type
    packages = {entry.module.partition(".")[0]: entry.dist.name for entry in entry_points(group=PASSES) if entry.dist}
    imported_from = pass_type.__module__.partition(".")[0]
    return {
        "name": name,
        "stage": str(pass_type.stage),
        "summary": pass_summary(pass_type),
        "options": pass_options(pass_type),
        "tolerance": str(pass_type.tolerance),
        "package": packages.get(imported_from, imported_from),
        "module": pass_type.__module__,
    }


def _table(passes: list[dict[str, Any]]) -> Table:
    table = Table(show_lines=False, padding=(0, 1, 1, 0), box=None, header_style="bold")
    for heading, width in (("stage", None), ("pass", 20), ("package", 16)):
        table.add_column(heading, overflow="fold", max_width=width)
    table.add_column("what it does", overflow="fold", ratio=1)
    stage = ""
    for found in passes:
        options = "\n".join(
            f"[cyan]{option}[/] = {escape(literal(repr(value)))}" for option, value in found["options"].items()
        )
        text = escape(literal(found["summary"])) + (f"\n{options}" if options else "")
        shown = "" if found["stage"] == stage else found["stage"]
        stage = found["stage"]
        table.add_row(f"[dim]{shown}[/]", f"[bold]{found['name']}[/]", Text(literal(found["package"])), text)
    return table
