"""Where the command line writes: results to stdout, everything else to stderr; and its exit codes.

0: done. 1: fxq refused (an FxqError). 2: a wrong call. 3: a fault, of fxq or of the model's own code. 130: interrupted.

What goes on is told to the logger ``fxq``. Its level decides what is shown: each pass too with ``--verbose``, warnings
alone with ``--quiet``.
"""

import json
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from fxq.cli.hints import in_words_of_the_shell
from fxq.errors import FxqError
from fxq.literal import literal
from fxq.plain_data import plain_data

_REFUSED, _FAULT, _INTERRUPTED = 1, 3, 130
_GLOB_HINT = (
    ". The shell writes a bare glob out as many arguments: give the folder, or the glob in quotes, --calib-data "
    "'photos/*.jpg'"
)
# What one command calls by another name than the next, or than other tools do.
_TWINS = {
    "--target": "--recipe",
    "--recipe": "--target",
    "--output": "--out",
    "--data": "--calib-data",
    "--calibration-data": "--calib-data",
    "--shape": "--input-shape",
}
_logger = logging.getLogger("fxq")


class CommandGroup(TyperGroup):
    """The command group; it prints an error as one block, with its traceback only if asked for."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # typer's own Context derives from this
        """Run the chosen command."""
        with _messages_on_stderr():
            set_verbose(bool(ctx.params.get("verbose")))
            set_quiet(bool(ctx.params.get("quiet")))
            has_data = any(one.startswith("--calib-data") for one in ctx.args)
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                _print_on_stderr(Text("interrupted: no file was left half-written", style="yellow"))
                raise typer.Exit(_INTERRUPTED) from None
            except Exception as error:  # the model's own code runs: it may raise anything
                if has_data and "unexpected extra argument" in getattr(error, "message", ""):
                    error.message += _GLOB_HINT  # type: ignore[attr-defined]  # of typer's UsageError
                _suggest_twin(error)
                if _is_typers(error) or ctx.params.get("traceback"):
                    raise
                raise typer.Exit(_report(error)) from error


def set_verbose(asked: bool) -> bool:
    """Show each pass as it runs, and the traceback of an error; while a command runs."""
    if asked:
        _logger.setLevel(logging.DEBUG)
    return asked


def set_quiet(asked: bool) -> bool:
    """Show warnings and errors alone; while a command runs."""
    if asked:
        _logger.setLevel(logging.WARNING)
    return asked


def is_quiet() -> bool:
    """Return whether nothing but results, warnings and errors is to be shown."""
    return not _logger.isEnabledFor(logging.INFO)


def print_result(*renderables: object) -> None:
    """Print on stdout, as wide as the terminal."""
    Console().print(*renderables)


def print_lines(text: Text) -> None:
    """Print styled text on stdout without breaking its lines, so that commands can be copied."""
    Console(highlight=False).print(text, soft_wrap=True)


def print_plain(text: str) -> None:
    """Print text on stdout for programs: no colours, no wrapping."""
    typer.echo(text)


def print_json(data: Any) -> None:
    """Print plain data on stdout as JSON, which has no infinity: that is the text "inf"."""
    typer.echo(json.dumps(plain_data(data), indent=2))


class _OnStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno < logging.WARNING:
            _print_on_stderr(Text(_lines(text), style="dim"))
        else:
            _print_on_stderr(
                Text.assemble(("warning: ", "bold yellow"), (_lines(in_words_of_the_shell(text)), "yellow"))
            )


@contextmanager
def _messages_on_stderr() -> Iterator[None]:
    """Print what fxq logs, and Python's warnings, while a command runs."""
    handler, level = _OnStderr(), _logger.level
    _logger.addHandler(handler)
    _logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_args, **_kwargs: _logger.warning("%s", message)
            yield
    finally:
        _logger.removeHandler(handler)
        _logger.setLevel(level)


def _is_typers(error: Exception) -> bool:
    """Return whether typer knows what to do with it: a wrong call, an exit, a closed pipe."""
    return isinstance(error, typer.Abort | BrokenPipeError) or hasattr(error, "exit_code")


def _suggest_twin(error: Any) -> None:
    """Where a command has no such option, name the one that does it here."""
    twin = _TWINS.get(getattr(error, "option_name", None) or "")
    if twin is not None and any(twin in parameter.opts for parameter in error.ctx.command.params):
        error.possibilities = [twin]


def _report(error: Exception) -> int:
    """Print an error, and return the exit code for it."""
    is_verbose = _logger.isEnabledFor(logging.DEBUG)
    if is_verbose:
        traceback.print_exception(error)
    text = _lines(in_words_of_the_shell(str(error)))
    if not isinstance(error, FxqError):
        hint = "" if is_verbose else "; --verbose shows where"
        text = f"a fault of fxq or of the model's own code: {type(error).__name__}: {text}{hint}"
    _print_on_stderr(Text.assemble(("error: ", "bold red"), (text, "red")))
    return _REFUSED if isinstance(error, FxqError) else _FAULT


def _print_on_stderr(message: Text) -> None:
    # The terminal wraps, so that paths and commands can be copied whole.
    Console(stderr=True, highlight=False).print(message, soft_wrap=True)


def _lines(text: str) -> str:
    return literal(text, kept="\n\t")
