"""Dynamic quantization: our files against float and against onnxruntime's own quantize_dynamic (int8, per channel)."""

import logging
import tempfile
from pathlib import Path

import numpy as np
from onnxruntime.quantization import QuantType, quantize_dynamic
from rich.console import RenderableType
from torch import Tensor, nn

import fxq
from benchmarks.figures import Figure
from benchmarks.float_files import write_float
from benchmarks.language_models import encoder, tagger
from benchmarks.model_files import FLOAT, ModelFiles

ROUNDS = 40
OURS, PEER = "fxq", "quantize_dynamic"


def run() -> list[RenderableType]:
    """Measure, and return the tables to print."""
    cases = {
        # Two threads, as everywhere; one for the taggers, whose time steps are so short that threads wait for each
        # other for longer than they work as soon as anything else runs.
        "2 encoder layers of BERT-base, 128 tokens": (*encoder(), 2),
        "LSTM tagger, 2 layers, bidirectional, 128 tokens": (*tagger(nn.LSTM), 1),
        "GRU tagger, 2 layers, bidirectional, 128 tokens": (*tagger(nn.GRU), 1),
    }
    return [
        part for title, (model, inputs, threads) in cases.items() for part in _measure(title, model, inputs, threads)
    ]


def _measure(title: str, model: nn.Module, inputs: Tensor, threads: int) -> list[RenderableType]:
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in (FLOAT, PEER, OURS)}
        write_float(model, inputs, files[FLOAT])
        _quantize_dynamic(files[FLOAT], files[PEER])
        converted = fxq.quantize(model, recipe="dynamic", example_inputs=inputs, progress=False)
        fxq.export_onnx(converted, files[OURS], dynamic_batch=False)  # as the float file
        found = ModelFiles(title, files, np.asarray(inputs), threads, ROUNDS)
    # onnxruntime has no integer GRU; its weights only get smaller.
    faster = 1.0 if isinstance(getattr(model, "recurrent", None), nn.GRU) else 1.5
    figures = [
        Figure("fxq / float, size", found.size(OURS), "x", limit=0.3, goal=0.27),
        Figure("float / fxq, latency", found.speed(OURS), "x", limit=0.9, goal=faster, higher_is_better=True),
        Figure("quantize_dynamic / fxq, latency", found.speed(OURS, to=PEER), "x", 0.9, 1.0, higher_is_better=True),
    ]
    return [found.table(), found.goals(figures)]


def _quantize_dynamic(source: Path, path: Path) -> None:
    logging.getLogger().setLevel(logging.ERROR)  # it recommends its own preprocessing, which changes nothing here
    quantize_dynamic(str(source), str(path), per_channel=True, weight_type=QuantType.QInt8)
