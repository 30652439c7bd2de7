"""Where the command line writes: results to stdout, everything else to stderr."""

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from fxq.errors import FxqError
from fxq.literal import literal


class CommandGroup(TyperGroup):
    """The command group; it prints an error of fxq as one block, without a traceback, and exits with 1."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # typer's own Context derives from this
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except FxqError as error:
            if ctx.params.get("traceback"):
                raise
            _print_error(error)
            raise typer.Exit(1) from error


def print_result(*renderables: object) -> None:
    """Print on stdout, as wide as the terminal."""
    Console().print(*renderables)


def print_lines(text: Text) -> None:
    """Print styled text on stdout without breaking its lines, so that commands can be copied."""
    Console(highlight=False).print(text, soft_wrap=True)


def print_plain(text: str) -> None:
    """Print text on stdout for programs: no colours, no wrapping."""
    typer.echo(text)


def print_note(text: str) -> None:
    """Print a line on stderr that tells what is going on."""
    Console(stderr=True, highlight=False).print(Text(_lines(text), style="dim"), soft_wrap=True)


def print_warning(text: str) -> None:
    """Print a warning on stderr."""
    message = Text.assemble(("warning: ", "bold yellow"), (_lines(text), "yellow"))
    Console(stderr=True, highlight=False).print(message, soft_wrap=True)


def _print_error(error: FxqError) -> None:
    message = Text.assemble(("error: ", "bold red"), (_lines(str(error)), "red"))
    # The terminal wraps, so that paths and commands can be copied whole.
    Console(stderr=True, highlight=False).print(message, soft_wrap=True)


def _lines(text: str) -> str:
    return literal(text, kept="\n\t")
