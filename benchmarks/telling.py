"""What long benchmarks say while they run, and the file that grows with each row."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path


def say(what: str) -> None:
    """Print a line with the time of day, beside the table that goes to standard output."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def write_parts(path: Path | None, parts: Sequence[str]) -> None:
    """Write the parts of a Markdown file, a blank line between them; None for no file."""
    if path is not None:
        path.write_text("\n\n".join(parts) + "\n")
