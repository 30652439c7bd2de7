"""What each stage costs against the size of the graph, which must be linear: a chain of small residual blocks."""

import gc
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor, nn

import fxq
from fxq.graph.trace import trace

NODES = (500, 1000, 2000, 4000, 8000)
# Most of an export is torch.export and torch.onnx; at 8000 nodes it would take a minute.
MOST_EXPORTED = 2000


class _Block(nn.Module):
    """Seven nodes: conv, batch norm, relu, conv, batch norm, add, relu."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))) + x)  # type: ignore[no-any-return]


def run() -> list[RenderableType]:
    """Measure CPU seconds on one thread, and return the table to print."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _seconds(NODES[0] // 10)  # imports what is imported lazily
        return [_table({nodes: _seconds(nodes) for nodes in NODES})]
    finally:
        torch.set_num_threads(threads)


def _seconds(nodes: int) -> dict[str, float]:
    torch.manual_seed(0)
    model, image = nn.Sequential(*(_Block() for _ in range(nodes // 7))).eval(), torch.randn(1, 4, 8, 8)
    found: dict[str, float] = {}

    def timed(stage: str, call: Callable[[], Any]) -> Any:
        gc.collect()
        start = time.process_time()
        result = call()
        found[stage] = time.process_time() - start
        return result

    timed("torch.fx.symbolic_trace", lambda: torch.fx.symbolic_trace(model))
    timed("tracing", lambda: trace(model, (image,)))
    prepared = timed("prepare beyond tracing", lambda: fxq.prepare(model, image))
    found["prepare beyond tracing"] -= found["tracing"]
    timed("calibrate, one image", lambda: fxq.calibrate(prepared, [image], progress=False))
    converted = timed("convert", lambda: fxq.convert(prepared))
    if nodes <= MOST_EXPORTED:
        with tempfile.TemporaryDirectory() as folder:
            timed("export_onnx, checked", lambda: fxq.export_onnx(converted, Path(folder) / "model.onnx"))
    return found


def _table(found: dict[int, dict[str, float]]) -> RenderableType:
    table = Table(title="CPU seconds against nodes of the graph, one thread", title_justify="left")
    for heading in ("stage", *(f"{nodes}" for nodes in found), "ms a node", "slope"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in found[min(found)]:
        seconds = {nodes: row[stage] for nodes, row in found.items() if stage in row}
        most = max(seconds)
        cells = [f"{seconds[nodes]:.2f}" if nodes in seconds else "" for nodes in found]
        table.add_row(stage, *cells, f"{1000 * seconds[most] / most:.2f}", f"{_slope(seconds):.2f}")
    return table


def _slope(seconds: dict[int, float]) -> float:
    """Return how log(time) grows with log(nodes), fitted: 1 is linear, 2 quadratic."""
    xs = [math.log(nodes) for nodes in seconds]
    ys = [math.log(max(value, 1e-3)) for value in seconds.values()]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / sum((x - x_mean) ** 2 for x in xs)
