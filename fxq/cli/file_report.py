"""What ``fxq report`` and ``fxq quantize --report`` write, with what a runtime makes of the file and its speed."""

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxq import api, reporting
from fxq.cli.calibration_data import Batches
from fxq.cli.console import is_quiet
from fxq.cli.file_latency import time_beside_float, why_not_timed
from fxq.errors import ExportError, FxqError
from fxq.runtimes import Latency
from fxq.stage import Stage
from fxq.state import require_state
from fxq.targets import Target
from fxq.verification import verify
from fxq.verification.finding import Finding

if TYPE_CHECKING:
    from fxq.export import ExportReport

logger = logging.getLogger(__name__)

_SAMPLES = 64


def check_places(paths: Iterable[Path]) -> None:
    """Raise an ExportError, before long work, where a report could not be written after it."""
    for path in paths:
        with reporting.check_place(path).staging():
            pass


def file_to_measure(prepared: GraphModule, path: Path) -> "ExportReport | str":
    """Write the file that ``fxq quantize`` would; return its report, or in words why there is none."""
    logger.info("writing the model as a file, to measure that")
    try:
        converted = api.convert(prepared)
        try:
            return api.export_onnx(converted, path)
        except ExportError:  # a model may take one batch size alone
            return api.export_onnx(converted, path, dynamic_batch=False)
    except FxqError as error:
        logger.warning("no file of the model is in the report: %s", error)
        return str(error)


def write_reports(
    paths: Iterable[Path],
    model: nn.Module,
    prepared: GraphModule,
    batches: Batches | None,
    exported: "ExportReport | str",
    inputs: tuple[Any, ...],
) -> None:
    """Write a report to each of ``paths``.

    Args:
        paths: ending in .html or .json.
        model: the float one.
        prepared: calibrated.
        batches: layers are measured on the first of them; None measures none.
        exported: its file, or why there is none.
        inputs: positional ones, of the sizes at which the runtime is asked about it.
    """
    target = require_state(prepared, Stage.PREPARED, "report").settings.target
    file = None if isinstance(exported, str) else exported
    findings, latency, notes = _without_file(exported) if file is None else _of_the_file(file, target, model, inputs)
    few = None if batches is None else _first(batches)
    logger.info("measuring layers for the report")
    found = reporting.report(
        prepared, None, few, float_model=model, file=file, findings=findings, latency=latency, progress=not is_quiet()
    )
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


_Facts = tuple[tuple[Finding, ...], dict[str, Latency], list[str]]


def _without_file(why: object) -> _Facts:
    return (), {}, [f"left out: size of the file, what fxq verify finds in it, and latency, without a file: {why}"]


def _of_the_file(file: "ExportReport", target: Target, model: nn.Module, inputs: tuple[Any, ...]) -> _Facts:
    """Return what ``fxq.verify`` finds, how long the file takes where its runtime runs here, and notes."""
    if file.islands:
        return (), {}, ["what runtimes make of the islands' files is not looked at: fxq verify does, one by one"]
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    shapes = {name: tuple(tensor.shape) for name, tensor in zip(file.shapes, tensors, strict=False)}
    logger.info("asking %s what it makes of %s", target.file.runtime or "the rules", file.path.name)
    try:
        found = verify(file.path, target, shapes)
    except FxqError as error:
        return (), {}, [f"the file was not verified: {error}"]
    verdict = f"fxq verify for {found.target}: {'no rule is broken' if found.ok else 'a rule is broken, see below'}"
    why_not = why_not_timed(target)
    if why_not:
        return found.findings, {}, [verdict, f"latency was not measured: {why_not}"]
    latency, notes = time_beside_float(file.path, target.file.runtime, shapes, model, inputs)
    return found.findings, latency, [verdict, *notes]
