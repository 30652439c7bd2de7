"""Weight-only quantization: our int8 and int4 files against float and against onnxruntime's MatMulNBits quantizer."""

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
from rich.console import RenderableType
from torch import Tensor, nn

import fxq
from benchmarks.figures import Figure
from benchmarks.float_files import write_float
from benchmarks.language_models import encoder, tagger
from benchmarks.model_files import FLOAT, ModelFiles
from benchmarks.models import network, noise_images

ROUNDS, BLOCK = 40, 32
RECIPES = {
    "int8": fxq.recipe("weight_only"),
    "int4": fxq.recipe("weight_only").replace(default=fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0))),
    f"int4, blocks of {BLOCK}": fxq.recipe("weight_only").replace(
        default=fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0, block_size=BLOCK))
    ),
}
PEER = f"MatMulNBitsQuantizer, int4, blocks of {BLOCK}"


def run() -> list[RenderableType]:
    """Measure, and return the tables to print."""
    images = noise_images(1)
    return [
        *_measure("2 encoder layers of BERT-base, 128 tokens", *encoder(), tuple(RECIPES), 2),
        *_measure("LSTM tagger, 2 layers, bidirectional, 128 tokens", *tagger(nn.LSTM), ("int8", "int4"), 1),
        *_measure("resnet18, one image of 224x224", network("resnet18"), images, ("int8", "int4"), 2),
        *_measure("mobilenet_v2, one image of 224x224", network("mobilenet_v2"), images, ("int8", "int4"), 2),
    ]


def _measure(
    title: str, model: nn.Module, inputs: Tensor, recipes: tuple[str, ...], threads: int
) -> list[RenderableType]:
    with tempfile.TemporaryDirectory() as folder:
        names = (FLOAT, *recipes, *([PEER] if len(recipes) > 2 else []))
        files = {name: Path(folder) / f"{index}.onnx" for index, name in enumerate(names)}
        write_float(model, inputs, files[FLOAT])
        if PEER in files:
            _quantize_nbits(files[FLOAT], files[PEER])
        for name in recipes:
            converted = fxq.quantize(model, recipe=RECIPES[name], example_inputs=inputs, progress=False)
            fxq.export_onnx(converted, files[name], dynamic_batch=False)  # as the float file
        found = ModelFiles(title, files, np.asarray(inputs), threads, ROUNDS)
    figures = []
    for name in recipes:
        limit = 0.3 if name == "int8" else 0.2
        figures += [
            Figure(f"{name} / float, size", found.size(name), "x", limit=limit),
            Figure(f"float / {name}, latency", found.speed(name), "x", limit=0.9, goal=1.0, higher_is_better=True),
        ]
    if PEER in files:
        name = recipes[-1]
        figures.append(Figure("peer / fxq, latency", found.speed(name, to=PEER), "x", 0.9, 1.0, higher_is_better=True))
        figures.append(Figure("fxq / peer, size", found.size(name, to=PEER), "x", limit=1.05, goal=1.0))
    return [found.table(), found.goals(figures)]


def _quantize_nbits(source: Path, path: Path) -> None:
    # Here, because it makes every library that logs print its messages.
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # noqa: PLC0415

    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)
    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path))
