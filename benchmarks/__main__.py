"""Run the benchmarks: ``uv run python -m benchmarks [NAME ...]``; without a name, all but the zoo (``zoo --help``)."""

import os
import sys

import torch
from rich.console import Console

from benchmarks import (
    calibration,
    calibration_kernels,
    compile_time,
    dynamic,
    graph_size,
    onnxruntime_latency,
    weight_only,
    zoo,
)

BENCHMARKS = {
    "calibration": calibration.run,
    "onnxruntime": onnxruntime_latency.run,
    "compile": compile_time.run,
    "graph_size": graph_size.run,
    "kernels": calibration_kernels.run,
    "dynamic": dynamic.run,
    "weight_only": weight_only.run,
}


def main(names: list[str]) -> int:
    if names[:1] == ["zoo"]:
        return zoo.main(names[1:])
    if {"-h", "--help"} & set(names):
        print(f"{__doc__}\nThere are {', '.join(BENCHMARKS)}, zoo.")
        return 0
    unknown = sorted(set(names) - set(BENCHMARKS))
    console = Console(width=120)
    if unknown:
        console.print(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}, zoo")
        return 2
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    for name in names or BENCHMARKS:
        for part in BENCHMARKS[name]():
            console.print(part)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
