"""Peers of ``python -m benchmarks accuracy``; each runs in a process of its own, as some patch torch when imported.

A peer is a function ``(case, folder) -> (run, seconds)``: what runs the quantized model on a batch of inputs, and the
CPU seconds that quantizing took. A file for ONNX Runtime is written by torch first; that is not counted.
"""

import copy
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.accuracy_rows import Row
from benchmarks.float_files import FLOAT_OPSET
from benchmarks.lab import Batch, Case, Lab, load
from fxq.runtimes import get_runtime

Peer = Callable[[Case, Path], tuple[Callable[..., Any], float]]


def measure_peer(peer: str, model: str, lab: Lab, packages: Path | None) -> Row:
    """Return the row of a peer; one that is not installed or fails says so in its note.

    Args:
        peer: a name of ``PEERS``.
        model: of the lab.
        lab: where the model is, and its data.
        packages: a folder with the peers' packages, which only the peer's process sees; None where they are installed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure_here, peer, model, lab, packages).result()
        except BrokenProcessPool:
            return Row(model, peer, note="failed: its process died")


def run_file(path: Path) -> Callable[..., Tensor]:
    """Return what runs an ONNX file on a batch of inputs in ONNX Runtime, and gives its first output."""
    runtime = get_runtime("onnxruntime", threads=torch.get_num_threads())
    return lambda *inputs: torch.from_numpy(runtime.run(path, list(inputs))[0])


def _measure_here(peer: str, model: str, lab: Lab, packages: Path | None) -> Row:
    if packages is not None:
        sys.path.append(str(packages.resolve()))  # behind what is installed: no second numpy
    silence()
    warnings.simplefilter("ignore")
    return peer_row(peer, load(lab, model), lab.seed)


def peer_row(peer: str, case: Case, seed: int = 0) -> Row:
    """Return the row of a peer, measured in this process."""
    torch.manual_seed(seed)
    try:
        with tempfile.TemporaryDirectory() as folder:
            run, seconds = PEERS[peer](case, Path(folder))
            sqnr_db, figures = case.evaluate(run)
    except ModuleNotFoundError as error:
        return Row(case.name, peer, note=f"not installed: {error.name}")
    except Exception as error:  # what a peer raises is its own; the other rows go on
        return Row(case.name, peer, note=failure(error))
    return Row(case.name, peer, sqnr_db=sqnr_db, figures=figures, seconds=seconds)


def failure(error: Exception) -> str:
    """Return what failed in one line of a table."""
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def silence() -> None:
    """Send what this process prints nowhere: peers print progress and advice, some from C++."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _onnxruntime(symmetric: bool) -> Peer:
    def quantize(case: Case, folder: Path) -> tuple[Callable[..., Any], float]:
        # Here, because it makes every library that logs print its messages.
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static  # noqa: PLC0415
        from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

        in_float, inferred, quantized = (folder / f"{name}.onnx" for name in ("float", "inferred", "quantized"))
        names = _write_open_batch(case, in_float)
        start = time.process_time()
        try:
            quant_pre_process(str(in_float), str(inferred))
        except Exception:  # whatever its inference of symbolic shapes raises; it has an option to go without
            quant_pre_process(str(in_float), str(inferred), skip_symbolic_shape=True)
        quantize_static(
            str(inferred),
            str(quantized),
            _Reader(names, case.calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
        )
        seconds = time.process_time() - start
        return run_file(quantized), seconds

    return quantize


class _Reader:
    """Hands the calibration batches to quantize_static: arrays by the name of the input."""

    def __init__(self, names: list[str], batches: list[Batch]) -> None:
        self._names = names
        self._left: Iterator[Batch] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._left, None)
        return None if batch is None else {n: np.asarray(t) for n, t in zip(self._names, batch, strict=True)}


def _write_open_batch(case: Case, path: Path) -> list[str]:
    """Write the float model with dimension 0 of its inputs open, and return their names."""
    inputs = case.calibration[0]
    names = [f"input_{index}" for index in range(len(inputs))]
    torch.onnx.export(
        case.model,
        inputs,
        path,
        input_names=names,
        opset_version=FLOAT_OPSET,
        dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs),
        verbose=False,
        external_data=False,
    )
    return names


def _nncf(preset: str) -> Peer:
    """Fast bias correction; smoothing and the rest of its mode for transformers where the model has LayerNorm."""

    def quantize(case: Case, folder: Path) -> tuple[Callable[..., Any], float]:
        import nncf  # type: ignore[import-not-found]  # noqa: PLC0415 - optional

        transformer = any(isinstance(module, nn.LayerNorm) for module in case.model.modules())
        start = time.process_time()
        found = nncf.quantize(
            case.model,
            nncf.Dataset(case.calibration, lambda batch: batch if len(batch) > 1 else batch[0]),
            preset=nncf.QuantizationPreset(preset),
            subset_size=len(case.calibration),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            fast_bias_correction=True,
        )
        return found, time.process_time() - start

    return quantize


def _modelopt(config: str) -> Peer:
    def quantize(case: Case, folder: Path) -> tuple[Callable[..., Any], float]:
        import modelopt.torch.quantization as mtq  # type: ignore[import-not-found]  # noqa: PLC0415 - optional

        def forward(model: nn.Module) -> None:
            for batch in case.calibration:
                model(*batch)

        start = time.process_time()
        found = mtq.quantize(copy.deepcopy(case.model), copy.deepcopy(getattr(mtq, config)), forward)
        return found, time.process_time() - start

    return quantize


PEERS: dict[str, Peer] = {
    "onnxruntime uint8": _onnxruntime(symmetric=False),
    "onnxruntime int8": _onnxruntime(symmetric=True),
    "nncf performance": _nncf("performance"),
    "nncf mixed": _nncf("mixed"),
    "modelopt": _modelopt("INT8_DEFAULT_CFG"),
    "modelopt smoothquant": _modelopt("INT8_SMOOTHQUANT_CFG"),
}
