"""Several files of one model, side by side: size, latency, and distance from the float file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from benchmarks.figures import Figure, table_of
from benchmarks.float_files import signal_to_noise_db
from fxq.runtimes import get_runtime, time_in_turn

FLOAT = "float"


class ModelFiles:
    """The files of one model, timed in turn on one input.

    Args:
        title: what the model is.
        files: by the name of what made them; ``FLOAT`` among them.
        inputs: the one input of the model.
        threads: of ONNX Runtime.
        rounds: how often each file runs.
    """

    def __init__(self, title: str, files: Mapping[str, Path], inputs: np.ndarray, threads: int, rounds: int) -> None:
        runtime = get_runtime("onnxruntime", threads=threads)
        self.model = title
        self.title = f"{title}; onnxruntime {runtime.version}, {threads} thread{'s' if threads > 1 else ''}"
        self.bytes = {name: path.stat().st_size for name, path in files.items()}
        runs = {name: runtime.bind(path, inputs) for name, path in files.items()}
        self.outputs = {name: run()[0] for name, run in runs.items()}
        self.times = time_in_turn(runs, rounds)

    def size(self, name: str, to: str = FLOAT) -> float:
        """Return the size of a file as a part of another's."""
        return self.bytes[name] / self.bytes[to]

    def speed(self, name: str, to: str = FLOAT) -> float:
        """Return how many times as fast as another a file runs."""
        return self.times[to].ratio(to=self.times[name])

    def table(self) -> Table:
        """Return a line a file."""
        table = Table(title=self.title, title_justify="left")
        headings = ("file", "MB", "of float", "ms", "times as fast as float", "output SNR, dB")
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "file" else "right")
        for name in self.bytes:
            exact = name == FLOAT
            snr = "" if exact else f"{signal_to_noise_db(self.outputs[FLOAT], self.outputs[name]):.1f}"
            size, ms = f"{self.bytes[name] / 1e6:.2f}", f"{self.times[name].median_ms:.2f}"
            table.add_row(name, size, f"{self.size(name):.3f}", ms, f"{self.speed(name):.2f}", snr)
        return table

    def goals(self, figures: list[Figure]) -> RenderableType:
        """Return what the files are held to."""
        return table_of(f"{self.model}: limits and goals", figures)
