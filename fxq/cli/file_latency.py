"""How long a file takes in the runtime that it is for, and the float model beside it."""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from fxq.cli.float_file import write_float
from fxq.errors import ExportError, FxqError
from fxq.runtimes import RUNTIMES, Latency
from fxq.targets import Target
from fxq.verification import bench
from fxq.verification.bench_report import BenchRow

logger = logging.getLogger(__name__)

_ROUNDS = 30


def why_not_timed(target: Target) -> str:
    """Return why files for a target cannot be timed here; "" where they can."""
    name = target.file.runtime
    runtime = RUNTIMES.get(name)
    if runtime is None:
        return f"target {target.name!r} names no runtime that fxq knows"
    if not runtime.runs_here:
        return f"{name} compiles files, and does not run them here"
    return "" if runtime.is_installed() else f"{name} is not installed: pip install {runtime.package}"


def time_beside_float(
    path: Path, runtime: str, shapes: dict[str, tuple[int, ...]], model: nn.Module, inputs: tuple[Any, ...]
) -> tuple[dict[str, Latency], list[str]]:
    """Return how long the file takes, and the float model beside it where torch exports it, and notes."""
    notes, files = [], [path]
    logger.info("timing it, and the float model, in %s", runtime)
    with tempfile.TemporaryDirectory() as folder:
        of_float = Path(folder) / "float.onnx"
        try:
            write_float(model, inputs, of_float)
            files.append(of_float)
        except ExportError as error:
            notes.append(f"the float model was not timed: {error}")
        try:
            found = bench(*files, runtimes=[runtime], shapes=shapes, rounds=_ROUNDS)
        except FxqError as error:
            return {}, [*notes, f"latency was not measured: {error}"]
    names = {os.fspath(path): f"{path.name} in {runtime}", os.fspath(of_float): f"the float model in {runtime}"}
    notes += [*found.notes, *(compared(row) for row in found if row.ratios is not None)]
    return {names[row.path]: row.latency for row in found}, notes


def compared(of_float: BenchRow) -> str:
    """Say how the float model fares beside the file, with which it was timed in turn."""
    assert of_float.ratios is not None
    low, middle, high = of_float.ratios
    source = "the float model, as torch.onnx.export writes it for these sizes,"
    if not of_float.is_certain:
        return f"whether {source} takes longer is too noisy to tell: {low:.2f} to {high:.2f} times as long"
    return f"{source} takes {middle:.2f} times as long ({low:.2f} to {high:.2f} in half of the rounds)"
