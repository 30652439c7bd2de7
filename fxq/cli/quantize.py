"""``fxq quantize``: model and data in, checked ONNX file out."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from fxq import api
from fxq.batches import Inputs, describe
from fxq.calibration import calibrate, needs_data
from fxq.cli.calibration_data import Batches, DataSource, calibration_batches
from fxq.cli.console import print_result
from fxq.cli.example_inputs import ExampleSource
from fxq.cli.file_form import FileForm
from fxq.cli.file_report import check_places, write_reports
from fxq.cli.models import ModelSource, check_trained, load_model
from fxq.cli.recipes import RecipeChoice
from fxq.compare.parity import MAX_LSB, MAX_MEAN_LSB
from fxq.compare.quality import FAIR_DB, GOOD_DB, LEAST_DB
from fxq.errors import ExportError, ModelError
from fxq.explain import explain
from fxq.explanation import Explanation
from fxq.literal import literal
from fxq.output_file import OutputFile
from fxq.saving.save import check_savable, save
from fxq.state import find_state

if TYPE_CHECKING:
    from fxq.export import ExportReport

logger = logging.getLogger(__name__)

# Enough to tell a good result from a bad one, and quick on any model.
JUDGED_SAMPLES = 8


@dataclass(frozen=True)
class QuantizeJob:
    """All that ``fxq quantize`` was asked for.

    ``data`` is None where there is none: then ``example`` says what the model takes.
    """

    model: ModelSource
    data: DataSource | None
    example: ExampleSource
    recipe: RecipeChoice
    out: Path
    form: FileForm = FileForm()  # noqa: RUF009 - frozen
    verify: bool = False
    explain: bool = False
    min_sqnr_db: float | None = None
    save: Path | None = None
    reports: tuple[Path, ...] = ()


def run_quantize(job: QuantizeJob) -> None:
    """Quantize, write, and print what was done.

    Raises:
        FxqError: something that was named does not exist, does not fit, or cannot be quantized or written.
    """
    if job.recipe.untraceable != "islands" or job.out.suffix == ".onnx":
        check_writable(job.out)
    if job.save is not None:
        check_savable(job.save)
    check_places(job.reports)
    check_trained(job.model)
    recipe = job.recipe.resolve()
    model = load_model(job.model)
    _check_dtype(model)
    if job.model.has_random_weights:
        logger.warning("%s has random weights, so its accuracy and ranges mean nothing", job.model.spec)
    batches = None if job.data is None else calibration_batches(job.data, model, job.example.dtypes(model))
    inputs = _inputs(job, model, batches)
    judged = tuple(value[:JUDGED_SAMPLES] if isinstance(value, Tensor) else value for value in inputs)
    check_runs(model, judged, job.data)
    job.form.check(model, judged)
    logger.info("%s: placing quantizers for %s", type(model).__name__, recipe.name)
    one = tuple(value[:1] if isinstance(value, Tensor) else value for value in judged)
    prepared = job.recipe.prepare(model, one, verify=job.verify)
    _check_kind(job.out, prepared)
    waiting = needs_data(prepared)
    if waiting and batches is None:
        raise ModelError(
            f"the recipe {recipe.name!r} needs calibration data: give --calib-data, or take a recipe that needs none "
            "(dynamic, weight_only)"
        )
    if waiting and job.data is not None and batches is not None:
        logger.info("calibrating on %s", _counted(len(batches), "batch", "batches"))
        report = calibrate(prepared, job.data.as_data(batches), unjudged=job.recipe.runs_unjudged)
        if report.notes or any(step.sqnr_after_db is not None for step in report.steps):
            print_result(report)
    # Of random weights or inputs nothing can be asked.
    strict = batches is not None and not job.model.has_random_weights
    converted = api.convert(prepared, job.min_sqnr_db, strict)
    if job.save is not None:
        save(prepared, job.save)
        logger.info("wrote %s", job.save)
    logger.info("writing and checking %s", job.out)
    options = {**job.form.options(), "min_sqnr_db": job.min_sqnr_db, "strict": strict}
    exported = api.export_onnx(converted, job.out, **options)
    if job.reports:
        write_reports(job.reports, model, prepared, batches, exported, one)
    explanation = explain(converted)
    if job.explain:
        print_result(explanation)
    calibrator = f", calibrator {recipe.calibrator}" if waiting and recipe.resolved_target.needs_data else ""
    if job.model.weights is None and job.model.is_callable:
        logger.info("the weights are as %s made them (no --weights)", job.model.spec)
    print_result(_summary(exported, f"{recipe.name}{calibrator}", explanation, "random" if batches is None else ""))


def check_writable(out: Path) -> None:
    """Raise an ExportError, before long work, if the file could not be written after it."""
    if out.suffix != ".onnx":
        raise ExportError(f"cannot write {out}: the file name must end in .onnx")
    with OutputFile(out).staging():
        pass


def _check_kind(out: Path, prepared: nn.Module) -> None:
    """Refuse, before long work, a file where islands need a folder, and the reverse."""
    state = find_state(prepared)
    has_islands = state is not None and state.islands is not None
    if has_islands and out.suffix == ".onnx":
        raise ExportError(f"cannot write {out}: each island of the model becomes a file, so --out must name a folder")
    if not has_islands and out.suffix != ".onnx":
        raise ExportError(f"cannot write {out}: the model can be traced as a whole, so --out must name an .onnx file")


def _check_dtype(model: nn.Module) -> None:
    """Refuse a model in float64, before long work."""
    for path, value in model.named_parameters():
        if value.dtype is torch.float64:
            raise ModelError(
                f"{path!r} of {type(model).__name__} is in float64, which ONNX's QuantizeLinear does not take: return "
                "model.float()"
            )


def _inputs(job: QuantizeJob, model: nn.Module, batches: Batches | None) -> tuple[Any, ...]:
    """Return the first batch, or an example where there is no data."""
    if job.data is None or batches is None:
        return job.example.make(job.model, model)
    first = next(iter(batches))
    inputs = first if isinstance(first, tuple) else (first,)
    job.example.check(inputs, model, str(job.data.path))
    return inputs


def check_runs(model: nn.Module, inputs: tuple[Any, ...], data: DataSource | None) -> None:
    """Raise a ModelError if the float model cannot take the first samples."""
    origin = "an input of --input-shape" if data is None else str(data.path)
    try:
        args, kwargs = Inputs(inputs, {}).fitting(model)
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:  # the model's own code runs: it may raise anything
        reason = (str(error) or type(error).__name__).rstrip(".")
        raise ModelError(
            f"{origin} does not fit {type(model).__name__}, which fails on {describe(inputs)}: {reason}. "
            f"{_cure(inputs, data)}"
        ) from error


def _cure(inputs: tuple[Any, ...], data: DataSource | None) -> str:
    if data is not None and not data.is_arrays:
        made = "grey, which --mean and --std of one number each ask for; three numbers keep colour"
        if data.images.channels == 3:
            made = "RGB; --mean and --std of one number each, such as 0.5, make them grey"
        return f"The images were made {data.images.size} x {data.images.size} (--image-size) and {made}"
    where = "Give each input as NAME:SHAPE:DTYPE" if data is None else "Write inputs"
    hint = f"{where} of the shape and order that its forward takes; dimension 0 counts samples"
    is_integer = any(isinstance(value, Tensor) and not value.is_floating_point() for value in inputs)
    return (
        f"{hint}. Integers stay integers: scale pixels as in training, and save them in float" if is_integer else hint
    )


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _summary(report: "ExportReport", recipe: str, explanation: Explanation, inputs: str) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    # As it is used; where that was not run, nothing was.
    worst = max(report.optimized_parity, key=lambda output: output.max_lsb, default=None)
    batch = "dynamic" if report.dynamic_batch else "static"
    table.add_row("wrote", Text(literal(str(report.path)), "bold"))
    if report.islands:
        files = [report.path / f"{name}.onnx" for name in report.islands]
        table.add_row("islands", Text(literal("\n".join(file.name for file in files))))
        for note in report.notes:
            table.add_row("", Text(literal(note), "dim"))
    table.add_row("recipe", Text(literal(recipe)))
    table.add_row("file", f"{report.size_bytes / 1e6:.2f} MB, opset {report.opset}, {batch} batch")
    if report.float_dtype:
        table.add_row("float side", f"{report.float_dtype}, {len(report.in_float32)} nodes in float32")
        for name, reason in report.in_float32.items():
            table.add_row("", Text(literal(f"{name}: {reason}"), "dim"))
    for name, shape in report.shapes.items():
        if any(isinstance(size, str) and size != "batch" for size in shape):
            table.add_row("open", Text(literal(f"{name}: {', '.join(map(str, shape))}")))
            table.add_row("", Text(f"run with {'; '.join(map(str, report.other_sizes))}", "dim"))
    table.add_row("quantized", Text(literal(str(report.coverage))))
    counts = sorted(explanation.counts.items())
    table.add_row("", Text(", ".join(f"{count} {role}" for role, count in counts) or "nothing", "dim"))
    quantizers = [f"{report.quantize_nodes} QuantizeLinear", f"{report.dequantize_nodes} DequantizeLinear"]
    if report.dynamic_nodes:
        quantizers.append(f"{report.dynamic_nodes} quantized on the fly")
    table.add_row("quantizers", ", ".join(quantizers))
    if worst is not None:
        table.add_row("ONNX Runtime", f"off by {worst.max_lsb:.2f} LSB at most, {worst.mean_lsb:.3f} on average")
        table.add_row(
            "", f"[dim]1 LSB is {worst.step:.3g}; up to {MAX_LSB:g} and {MAX_MEAN_LSB:g} count as rounding[/]"
        )
    quality = report.quality or explanation.quality
    for fusion in filter(None, (report.fusion, *(island.fusion for island in report.islands.values()))):
        table.add_row("fusion", Text(literal(fusion), "yellow"))
    for name, island in report.islands.items():
        if island.quality is not None:
            table.add_row(f"quality of {name}", Text(literal(str(island.quality))))
    if quality is not None:
        table.add_row("quality", Text(literal(f"{quality}{f', {inputs} inputs' if inputs else ''}")))
        table.add_row(
            "", Text(f"SQNR: {GOOD_DB:g} dB and more is good, from {FAIR_DB:g} fair, below {LEAST_DB:g} broken", "dim")
        )
    return table
