"""``fxq verify`` and ``fxq bench``: an ONNX file held to the rules of a target, and timed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from fxq.cli.console import print_plain, print_result
from fxq.errors import InputError, OnnxFileError, TargetError
from fxq.verification import verify

_BROKEN = 1


def run_verify(file: Path, target: str, shapes: tuple[str, ...], as_json: bool) -> None:
    """Print what is wrong with a file; exit with 1 where a rule is broken.

    Raises:
        typer.BadParameter: it cannot be verified.
    """
    with _wrong_calls():
        report = verify(file, target, _by_name(shapes))
    if as_json:
        print_plain(json.dumps(report.to_dict(), indent=2))
    else:
        print_result(report)
    if not report.ok:
        raise typer.Exit(_BROKEN)


@contextmanager
def _wrong_calls() -> Iterator[None]:
    """Turn what is wrong with a file, or was not told, into a wrong call: exit code 2."""
    try:
        yield
    except (OnnxFileError, InputError, TargetError) as error:
        raise typer.BadParameter(str(error)) from error


def _by_name(shapes: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for given in shapes:
        # Names of inputs may hold colons.
        name, colon, shape = given.rpartition(":")
        if not (colon and name and shape):
            raise typer.BadParameter(f"--shape {given} is no NAME:SHAPE such as x:1x3x224x224")
        found[name] = shape
    return found
