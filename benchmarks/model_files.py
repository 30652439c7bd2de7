"""Several files of one model, side by side: size, latency, and distance from the float file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from rich.console import RenderableType
from rich.table import Table

from benchmarks.figures import Figure, Timings, table_of, time_in_turn
from benchmarks.sessions import session, signal_to_noise_db

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
        self.model = title
        self.title = f"{title}; onnxruntime {onnxruntime.__version__}, {threads} thread{'s' if threads > 1 else ''}"
        self.bytes = {name: path.stat().st_size for name, path in files.items()}
        sessions = {name: session(path, threads) for name, path in files.items()}
        feeds = {name: {found.get_inputs()[0].name: inputs} for name, found in sessions.items()}
        self.outputs = {name: found.run(None, feeds[name])[0] for name, found in sessions.items()}
        self.times: Timings = time_in_turn(
            {name: lambda name=name: sessions[name].run(None, feeds[name]) for name in sessions},  # type: ignore[misc]  # binds the loop's name
            rounds,
        )

    def size(self, name: str, to: str = FLOAT) -> float:
        """Return the size of a file as a part of another's."""
        return self.bytes[name] / self.bytes[to]

    def speed(self, name: str, to: str = FLOAT) -> float:
        """Return how many times as fast as another a file runs."""
        return self.times.ratio(to, to=name)

    def table(self) -> Table:
        """Return a line a file."""
        table = Table(title=self.title, title_justify="left")
        headings = ("file", "MB", "of float", "ms", "times as fast as float", "output SNR, dB")
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "file" else "right")
        for name in self.bytes:
            exact = name == FLOAT
            snr = "" if exact else f"{signal_to_noise_db(self.outputs[FLOAT], self.outputs[name]):.1f}"
            size, ms = f"{self.bytes[name] / 1e6:.2f}", f"{self.times.median_ms(name):.2f}"
            table.add_row(name, size, f"{self.size(name):.3f}", ms, f"{self.speed(name):.2f}", snr)
        return table

    def goals(self, figures: list[Figure]) -> RenderableType:
        """Return what the files are held to."""
        return table_of(f"{self.model}: limits and goals", figures)
