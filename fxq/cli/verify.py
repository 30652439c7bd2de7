"""``fxq verify`` and ``fxq bench``: an ONNX file held to the rules of a target, and timed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from fxq.cli.console import print_plain, print_result
from fxq.errors import InputError, OnnxFileError, RuntimeUnavailableError, TargetError
from fxq.verification import bench, verify

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


@dataclass(frozen=True)
class BenchJob:
    """Files, and how to time them; ``runtimes`` None for all that are installed."""

    files: tuple[Path, ...]
    runtimes: tuple[str, ...] | None
    shapes: tuple[str, ...]
    threads: int | None
    rounds: int
    warm_up: int


def run_bench(job: BenchJob, as_json: bool) -> None:
    """Print how long files take.

    Raises:
        typer.BadParameter: one cannot be timed.
    """
    with _wrong_calls():
        report = bench(
            *job.files,
            runtimes=job.runtimes,
            shapes=_by_name(job.shapes),
            threads=job.threads,
            rounds=job.rounds,
            warm_up=job.warm_up,
        )
    if as_json:
        print_plain(json.dumps(report.to_dict(), indent=2))
    else:
        print_result(report)


@contextmanager
def _wrong_calls() -> Iterator[None]:
    """Turn what is wrong with a file, or was not told, into a wrong call: exit code 2."""
    try:
        yield
    except (OnnxFileError, InputError, TargetError, RuntimeUnavailableError) as error:
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
