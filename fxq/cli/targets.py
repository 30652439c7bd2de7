"""``fxq targets``: the runtimes that a recipe can be for, and one of them as text."""

import json
from typing import Any

from rich.table import Table
from rich.text import Text

from fxq.cli.console import print_plain, print_result
from fxq.literal import literal
from fxq.registry import TargetRegistration, get_target, registered_targets, target_from_file
from fxq.targets import Target


def run_target(name: str) -> None:
    """Print a target as TOML: a registered one, or that of a file, which is checked that way."""
    found = target_from_file(name) if name.endswith(".toml") else get_target(name)
    print_plain(found.to_toml().rstrip())


def run_targets_listing(as_json: bool) -> None:
    """Print all registered targets, with where they come from."""
    targets = [_describe(found) for found in registered_targets().values()]
    if as_json:
        print_plain(json.dumps(targets, indent=2))
    else:
        print_result(_table(targets))


def _describe(found: TargetRegistration) -> dict[str, Any]:
    target = found.target
    return {
        "name": target.name,
        "package": found.package,
        "module": found.module,
        "activation": "float" if target.activation is None else str(target.activation),
        "weight": str(target.weight),
        "runs": _runs(target),
    }


def _runs(target: Target) -> list[str]:
    """Return the kinds of which anything is quantized, in order of the rows."""
    return list(dict.fromkeys(kind for row in target.ops if row.slots for kind in row.kinds))


def _table(targets: list[dict[str, Any]]) -> Table:
    table = Table(show_lines=False, padding=(0, 1, 1, 0), box=None, header_style="bold")
    for heading in ("target", "package"):
        table.add_column(heading, no_wrap=True)
    table.add_column("activations, weights, and what is quantized", overflow="fold", ratio=1)
    for found in targets:
        text = f"{found['activation']}; {found['weight']}\n[dim]{', '.join(found['runs'])}[/]"
        table.add_row(f"[bold]{found['name']}[/]", Text(literal(found["package"] or found["module"])), text)
    return table
