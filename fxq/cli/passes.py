"""``fxq passes``: what can stand in a recipe."""

import json
from importlib.metadata import entry_points
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fxq.cli.console import print_plain, print_result
from fxq.literal import literal
from fxq.passbase import pass_summary
from fxq.registry import PASSES, Registration, pass_options, registered_passes


def run_passes_listing(as_json: bool) -> None:
    """Print all registered passes in the order of their stages."""
    packages = {entry.module.partition(".")[0]: entry.dist.name for entry in entry_points(group=PASSES) if entry.dist}
    found = sorted(registered_passes().items(), key=lambda item: (item[1].pass_type.stage, item[0]))
    passes = [_describe(name, registration, packages) for name, registration in found]
    if as_json:
        print_plain(json.dumps(passes, indent=2, default=str))
    else:
        print_result(_table(passes))


def _describe(name: str, registration: Registration, packages: dict[str, str]) -> dict[str, Any]:
    pass_type = registration.pass_type
    imported_from = pass_type.__module__.partition(".")[0]
    return {
        "name": name,
        "stage": str(pass_type.stage),
        "summary": pass_summary(pass_type),
        "options": pass_options(pass_type),
        "package": packages.get(imported_from, imported_from),
        "module": pass_type.__module__,
    }


def _table(passes: list[dict[str, Any]]) -> Table:
    table = Table(show_lines=False, padding=(0, 1, 1, 0), box=None, header_style="bold")
    for heading in ("stage", "pass", "package"):
        table.add_column(heading, no_wrap=True)
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
