"""How long the compiler itself takes: ResNet-50 step by step, and prepare against depth, which must be linear."""

import tempfile
import time
from pathlib import Path

import torch
from rich.console import RenderableType
from torchvision.models.resnet import BasicBlock, ResNet

import fxq
from benchmarks.figures import Figure, table_of
from benchmarks.models import network, noise_images
from fxq.runtimes import time_in_turn

BLOCKS_PER_STAGE = (2, 4, 8, 16)


def run() -> list[RenderableType]:
    """Measure, and return the tables to print."""
    return [_steps(), _depth()]


def _steps() -> RenderableType:
    model, images = network("resnet50"), noise_images(1)
    fxq.prepare(model)  # imports what is imported lazily
    marks = [time.perf_counter()]
    prepared = fxq.prepare(model, images)
    marks.append(time.perf_counter())
    fxq.calibrate(prepared, [images], progress=False)
    marks.append(time.perf_counter())
    converted = fxq.convert(prepared)
    marks.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as folder:
        fxq.export_onnx(converted, Path(folder) / "model.onnx")
    marks.append(time.perf_counter())
    steps = ("prepare", "calibrate, one image", "convert", "export_onnx, checked")
    figures = [Figure(step, end - start, "s") for step, start, end in zip(steps, marks, marks[1:], strict=False)]
    return table_of("compiling ResNet-50", figures)


def _depth() -> RenderableType:
    torch.manual_seed(0)
    models = {8 * blocks + 2: ResNet(BasicBlock, [blocks] * 4).eval() for blocks in BLOCKS_PER_STAGE}
    calls = {f"{layers} layers": lambda model=model: fxq.prepare(model) for layers, model in models.items()}
    times = time_in_turn(calls, rounds=5)
    figures = [
        Figure(name, times[name].median_ms, "ms", note=f"{times[name].median_ms / layers:.1f} ms a layer")
        for name, layers in zip(calls, models, strict=True)
    ]
    shortest, *_, longest = models
    growth = times[f"{longest} layers"].ratio(to=times[f"{shortest} layers"]) / (longest / shortest)
    figures.append(Figure("growth in time / growth in depth", growth, "x", limit=1.5, goal=1.0))
    return table_of("prepare against depth, ResNet of basic blocks, no example inputs", figures)
