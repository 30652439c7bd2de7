"""Latency in ONNX Runtime: ours against its own quantize_static (uint8, per channel, QDQ) and against float."""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.console import RenderableType
from torch import nn

import fxq
from benchmarks.figures import Figure, table_of
from benchmarks.float_files import write_float
from benchmarks.models import network, noise_images
from fxq.runtimes import get_runtime, time_in_turn

MODELS, ROUNDS, THREADS = ("resnet18", "resnet50"), 100, 2


def run() -> list[RenderableType]:
    """Measure, and return the tables to print."""
    return [_measure(name) for name in MODELS]


def _measure(name: str) -> RenderableType:
    images, runtime = noise_images(8), get_runtime("onnxruntime", threads=THREADS)
    with tempfile.TemporaryDirectory() as folder:
        files = _write_files(network(name), images, Path(folder))
        runs = {kind: runtime.bind(path, images[:1]) for kind, path in files.items()}
        times = time_in_turn(runs, ROUNDS)
    figures = [Figure(kind, times[kind].median_ms, "ms") for kind in runs]
    ours, peer, in_float = times["fxq"], times["quantize_static"], times["float"]
    figures += [
        Figure("fxq / quantize_static", ours.ratio(to=peer), "x", goal=1.0),
        Figure("float / fxq", in_float.ratio(to=ours), "x", goal=3.0, higher_is_better=True, note="with VNNI"),
    ]
    title = f"{name} in onnxruntime {runtime.version}, one image of 224x224, {THREADS} threads"
    return table_of(title, figures)


def _write_files(model: nn.Module, images: torch.Tensor, folder: Path) -> dict[str, Path]:
    files = {kind: folder / f"{kind}.onnx" for kind in ("float", "quantize_static", "fxq")}
    converted = fxq.quantize(model, [images], "onnxruntime", images[:1], progress=False)
    fxq.export_onnx(converted, files["fxq"], dynamic_batch=False)
    write_float(model, images[:1], files["float"], opset=18)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnxruntime's quantizer warns about its own calls
        inferred = folder / "inferred.onnx"
        quant_pre_process(str(files["float"]), str(inferred))
        quantize_static(
            str(inferred),
            str(files["quantize_static"]),
            _Reader(images.numpy()),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
    return files


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands the images to quantize_static one by one."""

    def __init__(self, images: np.ndarray) -> None:
        self.batches: Iterator[np.ndarray] = iter(np.split(images, len(images)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"x": batch}
