"""``fxq quantize``: model and data in, checked ONNX file out."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from fxq import api
from fxq.batches import describe
from fxq.calibration import calibrate, needs_data
from fxq.cli.calibration_data import DataSource, calibration_batches
from fxq.cli.console import print_note, print_result, print_warning
from fxq.cli.example_inputs import ExampleSource
from fxq.cli.models import ModelSource, load_model
from fxq.cli.quality import sqnr_db
from fxq.cli.recipes import RecipeChoice
from fxq.errors import ExportError, ModelError
from fxq.explain import explain
from fxq.literal import literal
from fxq.output_file import OutputFile

if TYPE_CHECKING:
    from fxq.export import ExportReport

# Enough to tell a good result from a bad one, and quick on any model.
_JUDGED_SAMPLES = 8


@dataclass(frozen=True)
class QuantizeJob:
    """All that ``fxq quantize`` was asked for; ``static_batch`` writes the file for batch size 1.

    ``data`` is None where there is none: then ``example`` says what the model takes.
    """

    model: ModelSource
    data: DataSource | None
    example: ExampleSource
    recipe: RecipeChoice
    out: Path
    static_batch: bool = False
    verify: bool = False
    explain: bool = False


def run_quantize(job: QuantizeJob) -> None:
    """Quantize, write, and print what was done.

    Raises:
        FxqError: something that was named does not exist, does not fit, or cannot be quantized or written.
    """
    check_writable(job.out)
    model = load_model(job.model)
    recipe = job.recipe.resolve()
    batches = None if job.data is None else calibration_batches(job.data, model)
    if job.model.has_random_weights:
        print_warning(
            f"{job.model.spec} has random weights, so its accuracy and ranges mean nothing; load trained ones with "
            "--weights"
        )
    inputs = job.example.make(job.model, model) if batches is None else _as_tuple(next(iter(batches)))
    judged = tuple(tensor[:_JUDGED_SAMPLES] for tensor in inputs)
    expected = _float_outputs(model, judged, "an input of --input-shape" if job.data is None else str(job.data.path))
    print_note(f"{type(model).__name__}: placing quantizers for {recipe.name}")
    prepared = api.prepare(model, tuple(tensor[:1] for tensor in judged), recipe, verify=job.verify)
    waiting = needs_data(prepared)
    if waiting and batches is None:
        raise ModelError(
            f"the recipe {recipe.name!r} needs calibration data: give --calib-data, or take a recipe that needs none "
            "(dynamic, weight_only)"
        )
    if waiting and batches is not None:
        print_note(f"calibrating on {len(batches)} batches")
        calibrate(prepared, batches)
    converted = api.convert(prepared)
    print_note(f"writing and checking {job.out}")
    report = api.export_onnx(converted, job.out, dynamic_batch=False if job.static_batch else None)
    if job.explain:
        print_result(explain(converted))
    with torch.no_grad():
        sqnr = sqnr_db(expected, converted(*judged))
    on = "random inputs" if batches is None else "calibration samples"
    calibrator = f", calibrator {recipe.calibrator}" if waiting else ""
    print_result(_summary(report, f"{recipe.name}{calibrator}", explain(converted).counts, f"{sqnr:.1f} dB", on))


def check_writable(out: Path) -> None:
    """Raise an ExportError, before long work, if the file could not be written after it."""
    if out.suffix != ".onnx":
        raise ExportError(f"cannot write {out}: the file name must end in .onnx")
    with OutputFile(out).staging():
        pass


def _as_tuple(batch: Any) -> tuple[Tensor, ...]:
    return batch if isinstance(batch, tuple) else (batch,)


def _float_outputs(model: nn.Module, inputs: tuple[Tensor, ...], origin: str) -> Any:
    """Return what the float model makes of the first samples; a ModelError if it cannot take them."""
    try:
        with torch.no_grad():
            return model(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"{origin} does not fit {type(model).__name__}, which fails on {describe(inputs)}: {error}. Write inputs "
            "of the shape and order that its forward takes; dimension 0 counts samples"
        ) from error


def _summary(report: "ExportReport", recipe: str, counts: dict[str, int], sqnr: str, on: str) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    # As it is used; where that was not run, nothing was.
    worst = max(report.optimized_parity, key=lambda output: output.max_lsb, default=None)
    batch = "dynamic" if report.dynamic_batch else "static"
    table.add_row("wrote", Text(literal(str(report.path)), "bold"))
    table.add_row("recipe", Text(literal(recipe)))
    table.add_row("file", f"{report.size_bytes / 1e6:.2f} MB, opset {report.opset}, {batch} batch")
    table.add_row("quantized", ", ".join(f"{count} {role}" for role, count in sorted(counts.items())) or "nothing")
    quantizers = [f"{report.quantize_nodes} QuantizeLinear", f"{report.dequantize_nodes} DequantizeLinear"]
    if report.dynamic_nodes:
        quantizers.append(f"{report.dynamic_nodes} quantized on the fly")
    table.add_row("quantizers", ", ".join(quantizers))
    if worst is not None:
        table.add_row("ONNX Runtime", f"off by {worst.max_lsb:.2f} LSB at most, {worst.mean_lsb:.3f} on average")
    table.add_row("SQNR", f"{sqnr} against the float model, on {on}")
    return table
