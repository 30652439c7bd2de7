"""ONNX Runtime, with some files that take its process along, or are refused; another process finds it by its name."""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fxq.errors import InputError
from fxq.runtimes import Latency, OpTime
from fxq.runtimes.onnxruntime import OnnxRuntime


@dataclass(frozen=True)
class Choosy(OnnxRuntime):
    """Args:
    deadly: names of files that it does not survive.
    survives_profiles, survives_company: whether it survives a profile, and several files in one process.
    """

    deadly: tuple[str, ...] = ()
    survives_profiles: bool = True
    survives_company: bool = True

    def bind(self, path: Any, inputs: Any) -> Callable[[], list[np.ndarray]]:
        if Path(path).name in self.deadly:
            die()
        return super().bind(path, inputs)

    def op_times(self, path: Any, inputs: Any, rounds: int = 20, warm_up: int = 3) -> tuple[OpTime, ...]:
        if not self.survives_profiles:
            die()
        return super().op_times(path, inputs, rounds, warm_up)

    def latencies(self, files: Sequence[Any], rounds: int = 50, warm_up: int = 5) -> tuple[Latency, ...]:
        if len(files) > 1 and not self.survives_company:
            die()
        return super().latencies(files, rounds, warm_up)


@dataclass(frozen=True)
class NoZeros(OnnxRuntime):
    """Takes no inputs of nothing but zeros, and computes nothing: its inputs may have every type."""

    def bind(self, path: Any, inputs: Any) -> Callable[[], list[np.ndarray]]:
        if not all(array.astype(np.float32).any() for array in inputs.values()):
            raise InputError("the file wants no zeros")
        return list


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
