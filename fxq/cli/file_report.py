"""What ``fxq report`` and ``fxq quantize --report`` write; the latter with the runtime's own word on the file."""

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxq import reporting
from fxq.cli.calibration_data import Batches
from fxq.cli.console import is_quiet
from fxq.errors import FxqError
from fxq.runtimes import RUNTIMES
from fxq.stage import Stage
from fxq.state import require_state
from fxq.targets import Target
from fxq.verification import bench, verify
from fxq.verification.bench_report import BenchReport
from fxq.verification.finding import Finding

if TYPE_CHECKING:
    from fxq.export import ExportReport

logger = logging.getLogger(__name__)

_ROUNDS, _SAMPLES = 30, 64


def check_places(paths: Iterable[Path]) -> None:
    """Raise an ExportError, before long work, where a report could not be written after it."""
    for path in paths:
        with reporting.check_place(path).staging():
            pass


def write_reports(
    paths: Iterable[Path],
    model: nn.Module,
    prepared: GraphModule,
    batches: Batches | None,
    exported: "ExportReport | None" = None,
    inputs: tuple[Any, ...] = (),
) -> None:
    """Write a report to each of ``paths``.

    Args:
        paths: ending in .html or .json.
        model: the float one.
        prepared: calibrated.
        batches: layers are measured on the first of them; None measures none.
        exported: its file, if one was written.
        inputs: positional ones, of the sizes at which the runtime is asked about it.
    """
    target = require_state(prepared, Stage.PREPARED, "report").settings.target
    findings, latency, notes = ((), None, []) if exported is None else _of_the_file(exported, target, inputs)
    few = None if batches is None else _first(batches)
    logger.info("measuring layers for the report")
    found = reporting.report(
        prepared, None, few, float_model=model, file=exported, findings=findings, latency=latency,
        progress=not is_quiet(),
    )  # fmt: skip
    found = dataclasses.replace(found, notes=(*found.notes, *notes))
    for path in paths:
        found.write(path)
        logger.info("wrote %s", path)


def _first(batches: Batches) -> list[Any]:
    """Return as many batches as hold the samples to measure on."""
    found, samples = [], 0
    for batch in batches:
        found.append(batch)
        samples += len(batch[0] if isinstance(batch, tuple) else batch)
        if samples >= _SAMPLES:
            break
    return found


def _of_the_file(
    exported: "ExportReport", target: Target, inputs: tuple[Any, ...]
) -> tuple[tuple[Finding, ...], BenchReport | None, list[str]]:
    """Return what ``fxq.verify`` finds, how long the file takes where its runtime runs here, and notes."""
    if exported.islands:
        return (), None, ["what runtimes make of the islands' files is not looked at: fxq verify does, one by one"]
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    shapes = {name: tuple(tensor.shape) for name, tensor in zip(exported.shapes, tensors, strict=False)}
    logger.info("asking %s what it makes of %s", target.file.runtime or "the rules", exported.path)
    try:
        found = verify(exported.path, target, shapes)
        notes = [f"fxq verify for {found.target}: {'no rule is broken' if found.ok else 'a rule is broken, see below'}"]
        runtime = RUNTIMES.get(target.file.runtime)
        latency = None
        if runtime is not None and runtime.runs_here and runtime.is_installed():
            latency = bench(exported.path, runtimes=[target.file.runtime], shapes=shapes, rounds=_ROUNDS)
    except FxqError as error:
        return (), None, [f"the file was not verified: {error}"]
    return found.findings, latency, notes
