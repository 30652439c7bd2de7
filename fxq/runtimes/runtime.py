"""What a runtime can be asked; :mod:`fxq.runtimes` finds the answers by name."""

import importlib
import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fxq.errors import InputError, RuntimeRefusedError, RuntimeUnavailableError
from fxq.runtimes.executed import ExecutedOp, OpTime
from fxq.runtimes.inputs import Inputs
from fxq.runtimes.timing import Latency, time_in_turn

FilePath = str | os.PathLike[str]
RunOnce = Callable[[], list[np.ndarray]]


@dataclass(frozen=True)
class Runtime(ABC):
    """A runtime with the options it is used with, the fields of its class.

    Every method raises RuntimeUnavailableError where the runtime is not installed or cannot do this on the machine, and
    RuntimeRefusedError, with the runtime's own words, where it does not take the file.

    Args:
        name: what ``get_runtime`` calls it.
        module: what is imported, at the first use.
        package: what is installed with pip.
        runs_here: whether files can be run and timed, rather than compiled alone.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    package: ClassVar[str]
    runs_here: ClassVar[bool] = True

    @abstractmethod
    def bind(self, path: FilePath, inputs: Inputs) -> RunOnce:
        """Load the file and return a function that runs it once on ``inputs``; for ``time_in_turn``.

        Raises:
            InputError: the inputs are not those of the file.
        """

    @abstractmethod
    def executed_ops(self, path: FilePath) -> tuple[ExecutedOp, ...]:
        """Return what the runtime executes of the file after its own fusions, in the order of execution."""

    def op_times(self, path: FilePath, inputs: Inputs, rounds: int = 20, warm_up: int = 3) -> tuple[OpTime, ...]:
        """Return how long each operation takes, as far as the runtime tells, those that it runs first first.

        Raises:
            InputError: the inputs are not those of the file.
        """
        raise RuntimeUnavailableError(f"{self.name} does not tell how long its operations take")

    def run(self, path: FilePath, inputs: Inputs) -> list[np.ndarray]:
        """Return the outputs of the file, in its order.

        Args:
            path: the ONNX file.
            inputs: an array, arrays in the order of the file's inputs, or arrays by name.

        Raises:
            InputError: the inputs are not those of the file.
        """
        return self.bind(path, inputs)()

    def latency(self, path: FilePath, inputs: Inputs, rounds: int = 50, warm_up: int = 5) -> Latency:
        """Return how long a run takes; the first ``warm_up`` runs are not counted.

        To compare files, give ``time_in_turn`` what ``bind`` returns for each: then a busy machine slows all alike.

        Raises:
            InputError: the inputs are not those of the file, or there is no round to count.
        """
        return time_in_turn({self.name: self.bind(path, inputs)}, rounds, warm_up)[self.name]

    def latencies(
        self, files: Sequence[tuple[FilePath, Inputs]], rounds: int = 50, warm_up: int = 5
    ) -> tuple[Latency, ...]:
        """Return how long runs of several files take, each with its inputs, in turn; errors of :meth:`latency`."""
        calls = {str(index): self.bind(path, inputs) for index, (path, inputs) in enumerate(files)}
        return tuple(time_in_turn(calls, rounds, warm_up).values())

    @classmethod
    def is_installed(cls) -> bool:
        """Whether the runtime's package is there; does not import it."""
        return importlib.util.find_spec(cls.module) is not None

    @property
    def version(self) -> str:
        """The version of the runtime's package."""
        return str(self._import().__version__)

    def _import(self) -> Any:
        """Return the runtime's module, whose types nobody wrote down."""
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError) as error:  # OSError: a shared library of the package does not load
            raise RuntimeUnavailableError(
                f"runtime {self.name!r} is not installed: pip install {self.package} ({error})"
            ) from error

    @contextmanager
    def _own_words(self, path: Path, errors: tuple[type[Exception], ...]) -> Iterator[None]:
        """Turn the runtime's errors into fxq's."""
        try:
            yield
        except errors as error:
            raise self._refusal(path, str(error)) from error

    def _refusal(self, path: Path, words: str) -> RuntimeRefusedError:
        return RuntimeRefusedError(f"{self.name} does not run {path.name}: {words.strip()}")

    def _existing(self, path: FilePath) -> Path:
        path = Path(path)
        if not path.is_file():
            raise RuntimeRefusedError(f"{self.name} cannot run {path}: there is no such file")
        return path


def check_threads(threads: int | None) -> None:
    """Refuse what is no number of threads; None leaves it to the runtime.

    Raises:
        InputError: it is no whole number from 1 on.
    """
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise InputError(f"threads must be a whole number from 1 on, or None for the runtime's choice; got {threads!r}")
