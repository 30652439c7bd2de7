"""``fxq diff``: what tells two saved models apart."""

from pathlib import Path

from fxq.cli.console import print_json, print_result
from fxq.saving.difference import diff


def run_diff(first: Path, second: Path, as_json: bool) -> None:
    """Print the differences as tables, or as JSON; a SavedModelError where a file is none of ``fxq.save``."""
    found = diff(first, second)
    if as_json:
        print_json(found.to_dict())
    else:
        print_result(found)
