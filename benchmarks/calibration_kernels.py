"""How long the calibrators take for one activation, against torch.aminmax and torch.histc on the same tensor.

Run: python -m benchmarks kernels. Times are the best of the rounds; the kinds are measured in
turn, so that a busy machine slows them alike.
"""

import time
from collections.abc import Callable

import torch
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor

from fxq.calib import HistogramCalibrator, MaxCalibrator, MinMaxCalibrator, MovingAverageMinMaxCalibrator

ROUNDS = 11


def best_times_ms(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: min(values) for name, values in times.items()}


def activations() -> dict[str, Tensor]:
    """An early MobileNetV2 activation of 16 images, before and after its ReLU6."""
    torch.manual_seed(0)
    x = 2 * torch.randn(16, 96, 56, 56)
    return {
        "normal": x,
        "relu6": x.clamp(0, 6),
        "relu6, channels_last": x.clamp(0, 6).to(memory_format=torch.channels_last),
    }


def observe_table() -> Table:
    table = Table(title="observe, against torch.aminmax and torch.histc")
    for heading in ("activation", "calibrator", "ms", "ns a value", "x aminmax", "x histc"):
        table.add_column(heading, justify="left" if heading in ("activation", "calibrator") else "right")
    for name, x in activations().items():
        calibrators = {
            "max": MaxCalibrator(),
            "max per channel": MaxCalibrator(axis=1),
            "min and max": MinMaxCalibrator(),
            "moving average": MovingAverageMinMaxCalibrator(),
            "histogram": HistogramCalibrator(),
            "histogram, affine": HistogramCalibrator(symmetric=False),
        }
        top = float(x.abs().max())
        calls: dict[str, Callable[[], object]] = {
            "torch.aminmax": lambda x=x: torch.aminmax(x),  # type: ignore[misc]  # binds the loop's x
            "torch.histc(x.abs())": lambda x=x, top=top: torch.histc(x.abs(), 2048, 0, top),  # type: ignore[misc]
        }
        for kind, calibrator in calibrators.items():
            calls[kind] = lambda x=x, calibrator=calibrator: calibrator.observe(x)  # type: ignore[misc]
        times = best_times_ms(calls)
        for kind, ms in times.items():
            ratios = (ms / times["torch.aminmax"], ms / times["torch.histc(x.abs())"])
            table.add_row(name, kind, f"{ms:.2f}", f"{1e6 * ms / x.numel():.2f}", *(f"{ratio:.2f}" for ratio in ratios))
    return table


def fit_table() -> Table:
    table = Table(title="fit of 2048 to 4096 bins, ms")
    for heading in ("activation", "scheme", "max", "percentile", "mse", "entropy"):
        table.add_column(heading, justify="left" if heading in ("activation", "scheme") else "right")
    for name, x in list(activations().items())[:2]:
        for symmetric in (True, False):
            calibrator = HistogramCalibrator(symmetric=symmetric)
            calibrator.observe(x)
            times = best_times_ms(
                {
                    method: lambda method=method, calibrator=calibrator: calibrator.fit(method)  # type: ignore[misc]
                    for method in ("max", "percentile", "mse", "entropy")
                }
            )
            table.add_row(name, "symmetric" if symmetric else "affine", *(f"{ms:.2f}" for ms in times.values()))
    return table


def run() -> list[RenderableType]:
    """Measure, and return the tables to print."""
    return [observe_table(), fit_table()]
