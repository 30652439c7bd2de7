"""verify, bench: thin, they import the ONNX libraries when they are called, which takes as long as importing torch."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxq.targets import Target
from fxq.verification.bench_report import BenchReport
from fxq.verification.report import VerifyReport

if TYPE_CHECKING:
    from fxq.verification.shapes import Shapes


def verify(
    path: str | os.PathLike[str], target: str | os.PathLike[str] | Target, shapes: "Shapes | None" = None
) -> VerifyReport:
    """Hold an ONNX file, whoever wrote it, to the rules of a target, and ask the runtime what it makes of it.

    The runtime compiles the file in a process of its own; where it is not installed, refuses the file or crashes, a
    finding says so, and what the rules found is there all the same.

    Args:
        path: of the file.
        target: a name, such as "tensorrt", "onnxruntime" or "openvino", the path of a .toml file, or a target.
        shapes: for inputs with open sizes, by name: "1x3x224x224" or (1, 3, 224, 224), or a smallest, a usual and a
            largest, "1x3x224x224/8x3x224x224/32x3x224x224". TensorRT needs them, unless the file
            stores bounds (those of ``dynamic_shapes`` in an export); with a single one its activation traffic can be
            counted.

    Returns:
        The findings; ``.ok``, ``.table()``.

    Raises:
        OnnxFileError: the file is not ONNX, not whole, too old or not quantized, or has open sizes that the runtime
            must know.
        InputError: ``path`` is no path, or ``shapes`` does not fit the file.
        TargetError: there is no such target.
    """
    from fxq.verification.checking import check_file  # noqa: PLC0415

    return check_file(path, target, shapes)


def bench(
    *paths: str | os.PathLike[str],
    runtimes: Sequence[str] | None = None,
    shapes: "Shapes | None" = None,
    threads: int | None = None,
    rounds: int = 50,
    warm_up: int = 5,
) -> BenchReport:
    """Time ONNX files against each other: all in each round, so that a busy machine slows all alike.

    Each runtime has a process of its own. Inputs are random, integers 0.

    Args:
        paths: the file of interest, then those to compare it with, such as the float model.
        runtimes: names; None for all that are installed and run files here.
        shapes: of inputs with open sizes, by name: "1x3x224x224" or (1, 3, 224, 224). An open first size that is not
            told is 1, and the report says so.
        threads: for one run; None leaves it to the runtime.
        rounds: counted runs of each file.
        warm_up: runs before them.

    Returns:
        A row for each file that runs, in each runtime: ``.rows``, ``.table()``; ``.notes`` say which does not, and why.

    Raises:
        OnnxFileError: a file is not ONNX, not whole, or has other open sizes than the first that are not told.
        InputError: a path is none, or ``shapes``, ``threads`` or ``rounds`` cannot be.
        RuntimeUnavailableError: no runtime is here, or one that was named is not.
        RuntimeRefusedError: no runtime runs the files; the message holds their words.
    """
    from fxq.verification.benching import time_files  # noqa: PLC0415

    return time_files(paths, runtimes, shapes, threads, rounds, warm_up)
