"""A progress bar for long loops, on stderr and only where somebody watches."""

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def track(items: Iterable[Item], description: str, enabled: bool = True) -> Iterator[Item]:
    """Yield ``items``, with a bar that vanishes when they are through; without a terminal there is none."""
    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
        yield from items
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        total = len(items) if isinstance(items, Sized) else None
        yield from progress.track(items, description=description, total=total)
