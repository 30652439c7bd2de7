"""``fxq demo``: train a small ResNet on real digits, quantize it for two runtimes, run the files, compare."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from fxq import api
from fxq.calibration import calibrate
from fxq.cli.console import is_quiet, print_lines, print_result
from fxq.cli.demo_model import Digits, digits_resnet, load_digits, train, training_steps
from fxq.cli.demo_report import Column, Compiled, next_steps, results_table
from fxq.compare.quality import sqnr_db
from fxq.errors import ExportError
from fxq.explain import explain
from fxq.nn import TensorQuantizer
from fxq.runtimes import get_runtime, time_in_turn, traffic_mb
from fxq.runtimes.tensorrt_rtx import TensorRtRtx, weighted_ops

logger = logging.getLogger(__name__)

TARGETS = ("tensorrt", "onnxruntime")
_CALIBRATION_IMAGES, _BATCH = 512, 64
_WARM_UP, _ROUNDS = 10, 60


@dataclass(frozen=True)
class DemoOptions:
    """Where to write, the seed of everything, and whether to train on a quarter of the digits."""

    out: Path
    seed: int = 0
    quick: bool = False


@dataclass(frozen=True)
class _Written:
    """A file, and what was counted in the prepared graph (nothing for the float file)."""

    name: str
    path: Path
    quantizers: int | None = None
    residual_adds: int | None = None


def run_demo(options: DemoOptions) -> None:
    """Do it all and print a table.

    Raises:
        ModelError: torchvision or mlxtend is not installed.
        ExportError: the directory cannot be written.
    """
    _make_directory(options.out)
    with _one_thread(), _progress() as progress:
        show = _Steps(progress)
        show("reading 5000 digits")
        digits = load_digits(options.seed, *((1000, 250) if options.quick else (4000, 1000)))
        torch.manual_seed(options.seed)
        model = digits_resnet()
        train(model, digits, show("training a ResNet", training_steps(digits)))
        show("exporting the float model")
        written = [_write_float(model, digits, options.out)]
        for target in TARGETS:
            show(f"quantizing for {target}")
            written.append(_write_quantized(model, digits, target, options.out))
        show("running the files in ONNX Runtime")
        columns = _measure(written, digits)
        if TensorRtRtx.is_installed():
            show("compiling the files with TensorRT-RTX")
            columns = [_with_compiled(column, file, digits) for column, file in zip(columns, written, strict=True)]
        show.finish()
    print_result(results_table(columns))
    print_lines(next_steps(options.out))


class _Steps:
    """Finishes the step before, and starts one; ``advance`` is what it returns."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __call__(self, description: str, total: int | None = None) -> Callable[[], None]:
        self.finish()
        if self.progress.disable:
            logger.info(description)
        task_id = self.progress.add_task(description, total=total)
        return lambda: self.progress.advance(task_id)

    def finish(self) -> None:
        """Show the running step as done."""
        for task in self.progress.tasks:
            self.progress.update(task.id, total=task.total or 1, completed=task.total or 1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads wait for each other at every small operation; on a busy machine that takes minutes, not seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _progress() -> Progress:
    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=is_quiet() or not (console.is_terminal and sys.stderr.isatty()))


def _make_directory(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot write to {out}: {error.strerror}; choose another directory with --out") from error


def _write_float(model: nn.Module, digits: Digits, out: Path) -> _Written:
    """Write the float model, and what it takes to quantize it again by hand."""
    torch.save(model.state_dict(), out / "digits.pt")
    np.save(out / "calibration.npy", digits.train_images[:_CALIBRATION_IMAGES].numpy())
    _export_float(model, out / "float.onnx", digits.test_images[:2])
    return _Written("float", out / "float.onnx")


def _export_float(model: nn.Module, path: Path, example: Tensor) -> None:
    """Write the float model as ONNX with a dynamic batch; an ``example`` of one image would be taken for a constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about itself
        program = torch.onnx.export(
            model, (example,), dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    assert program is not None
    program.save(path)


def _write_quantized(model: nn.Module, digits: Digits, target: str, out: Path) -> _Written:
    prepared = api.prepare(model, digits.train_images[:1], target)
    calibrate(prepared, torch.split(digits.train_images[:_CALIBRATION_IMAGES], _BATCH), progress=False)
    report = api.export_onnx(api.convert(prepared), out / f"{target}.onnx")
    quantizers = sum(isinstance(module, TensorQuantizer) for module in prepared.modules())
    adds = sum(node.kind == "add" and node.is_quantized for node in explain(prepared).nodes)
    return _Written(target, report.path, quantizers, adds)


def _measure(files: list[_Written], digits: Digits) -> list[Column]:
    runtime, images = get_runtime("onnxruntime", threads=1), digits.test_images.numpy()
    logits = [torch.from_numpy(runtime.run(file.path, images)[0]) for file in files]
    runs = {file.name: runtime.bind(file.path, images[:1]) for file in files if file.name != "tensorrt"}
    latencies = time_in_turn(runs, _ROUNDS, _WARM_UP)
    return [
        Column(
            name=file.name,
            accuracy=_accuracy(found, digits.test_labels),
            sqnr_db=None if file.quantizers is None else sqnr_db([logits[0]], [found]),
            size_bytes=file.path.stat().st_size,
            latency_ms=latencies[file.name].median_ms if file.name in latencies else None,
            quantizers=file.quantizers,
            residual_adds=file.residual_adds,
        )
        for file, found in zip(files, logits, strict=True)
    ]


def _with_compiled(column: Column, file: _Written, digits: Digits) -> Column:
    """Add what TensorRT-RTX makes of a file for one image; not of the one with ONNX Runtime's int32 biases."""
    if file.name == "onnxruntime":
        return column
    image = tuple(digits.test_images[:1].shape)
    kernels = TensorRtRtx({_input_name(file.path): (image, image, image)}).executed_ops(file.path)
    weighted = weighted_ops(kernels)
    compiled = Compiled(len(weighted), sum("int8" in op.input_dtypes for op in weighted), traffic_mb(kernels))
    return replace(column, compiled=compiled)


def _input_name(path: Path) -> str:
    import onnx  # noqa: PLC0415 - as slow to import as torch, and needed here only

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())
