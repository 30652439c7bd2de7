"""A progress bar for long loops, or a line that tells how far a search is: on stderr, only where somebody watches."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")
Say = Callable[[str], None]


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


@contextmanager
def saying(enabled: bool = True) -> Iterator[Say]:
    """Yield a function that shows a line of text, in place of the one before; without a terminal it shows nothing."""
    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
        yield lambda text: None
        return
    with console.status("") as status:
        yield lambda text: status.update(Text(text))
