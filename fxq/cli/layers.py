"""``fxq compare``, ``sensitivity`` and ``report``: which layers of a quantized model are far from the float one."""

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn
from torch.fx import GraphModule

from fxq.calibration import calibrate, needs_data
from fxq.cli.calibration_data import Batches, DataSource, calibration_batches
from fxq.cli.console import is_quiet, print_json, print_result
from fxq.cli.example_inputs import ExampleSource
from fxq.cli.file_report import check_places, file_to_measure, write_reports
from fxq.cli.models import ModelSource, check_trained, load_model
from fxq.cli.quantize import JUDGED_SAMPLES, check_runs
from fxq.cli.recipes import RecipeChoice
from fxq.comparison import compare
from fxq.comparison_report import Comparison
from fxq.layer_report import plot_place
from fxq.sensitivity import Mode, sensitivity
from fxq.sensitivity_report import Sensitivity

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayersJob:
    """A model, what to run it on, and what to write.

    ``plot``: a picture, None for none. ``as_json``: print plain data, infinite decibels as the text "inf".
    """

    model: ModelSource
    data: DataSource
    example: ExampleSource
    recipe: RecipeChoice
    plot: Path | None = None
    as_json: bool = False


def run_compare(job: LayersJob) -> None:
    """Print how far each layer is from the float model.

    Raises:
        FxqError: something that was named does not exist, does not fit, or cannot be quantized or written.
    """
    model, prepared, batches, _ = _calibrated(job)
    _show(job, compare(model, prepared, batches, progress=not is_quiet()))


def run_sensitivity(job: LayersJob, mode: str) -> None:
    """Print what each group of operations costs; errors as of :func:`run_compare`."""
    (chosen,) = [known for known in get_args(Mode) if known == mode]
    _, prepared, batches, _ = _calibrated(job)
    _show(job, sensitivity(prepared, batches, mode=chosen, progress=not is_quiet()))


def run_report(job: LayersJob, paths: Sequence[Path], has_file: bool) -> None:
    """Write a report to each of ``paths``, with what a file of the model is like; errors as of :func:`run_compare`."""
    check_places(paths)
    model, prepared, batches, inputs = _calibrated(job)
    with tempfile.TemporaryDirectory() as folder:
        file = file_to_measure(prepared, Path(folder) / "quantized.onnx") if has_file else "--no-file was given"
        write_reports(paths, model, prepared, batches, file, inputs)


def load(job: LayersJob) -> tuple[nn.Module, Batches, tuple[Any, ...]]:
    """Return the model, its calibration data, and the first samples, on which it was seen to run.

    Raises:
        FxqError: something that was named does not exist or does not fit.
    """
    check_trained(job.model)
    job.recipe.resolve()
    model = load_model(job.model)
    batches = calibration_batches(job.data, model, job.example.dtypes(model))
    first = next(iter(batches))
    inputs = first if isinstance(first, tuple) else (first,)
    job.example.check(inputs, model, str(job.data.path))
    judged = tuple(value[:JUDGED_SAMPLES] if isinstance(value, Tensor) else value for value in inputs)
    check_runs(model, judged, job.data)
    return model, batches, judged


def one_of_each(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the first sample alone."""
    return tuple(value[:1] if isinstance(value, Tensor) else value for value in inputs)


def _calibrated(job: LayersJob) -> tuple[nn.Module, GraphModule, Batches, tuple[Any, ...]]:
    """Return the model, what was prepared of it, its data and one sample."""
    if job.plot is not None:
        plot_place(job.plot)  # before long work
    model, batches, judged = load(job)
    if job.model.has_random_weights:
        logger.warning("%s has random weights, so its errors mean nothing", job.model.spec)
    logger.info("%s: placing quantizers for %s", type(model).__name__, job.recipe.resolve().name)
    one = one_of_each(judged)
    prepared = job.recipe.prepare(model, one)
    if needs_data(prepared):
        logger.info("calibrating on %d batches", len(batches))
        calibrate(prepared, job.data.as_data(batches), unjudged=job.recipe.runs_unjudged)
    return model, prepared, batches, one


def _show(job: LayersJob, report: Comparison | Sensitivity) -> None:
    if job.as_json:
        print_json(dataclasses.asdict(report))
    else:
        print_result(report)
    if job.plot is not None:
        report.plot(job.plot)
        logger.info("wrote %s", job.plot)
