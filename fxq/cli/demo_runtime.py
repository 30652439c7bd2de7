"""Run the files of the demo in ONNX Runtime: logits and latency."""

import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

_WARM_UP, _ROUNDS = 10, 60


def export_float(model: nn.Module, path: Path, example: Tensor) -> None:
    """Write the float model as ONNX, to compare with; it has a dynamic batch.

    Args:
        model: in eval mode.
        path: the .onnx file.
        example: a batch of at least two images: a size of 1 would be taken for a constant.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about itself
        program = torch.onnx.export(
            model, (example,), dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    assert program is not None
    program.save(path)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Return the file in ONNX Runtime on the CPU, with all its fusions."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, images: Tensor) -> Tensor:
    """Return the logits (images, 10)."""
    return torch.from_numpy(_run(session, images.numpy()))


def median_latencies_ms(sessions: Sequence[onnxruntime.InferenceSession], image: Tensor) -> list[float]:
    """Return the median time of each session for ``image`` (1, 1, 28, 28).

    The sessions take turns, so that a machine that slows down meanwhile slows all of them.
    """
    array = image.numpy()
    times_ms: list[list[float]] = [[] for _ in sessions]
    for turn in range(_WARM_UP + _ROUNDS):
        for session, taken in zip(sessions, times_ms, strict=True):
            start = time.perf_counter()
            _run(session, array)
            if turn >= _WARM_UP:
                taken.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(taken) for taken in times_ms]


def _run(session: onnxruntime.InferenceSession, array: np.ndarray) -> np.ndarray:
    logits: np.ndarray = session.run(None, {session.get_inputs()[0].name: array})[0]
    return logits
