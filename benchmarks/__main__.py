"""Run the benchmarks: ``uv run python -m benchmarks [NAME ...]``; without a name, all but the last four.

``zoo``, ``accuracy``, ``latency`` and ``traffic`` have options of their own (``--help``): one sweeps architectures, two
need a folder, of trained models and for the files that are timed, and one compiles files for TensorRT without a GPU.
"""

import os
import sys

import torch
from rich.console import Console

from benchmarks import (
    accuracy,
    calibration,
    calibration_kernels,
    compile_time,
    distributed,
    dynamic,
    graph_size,
    latency,
    qat_step,
    traffic,
    weight_only,
    zoo,
)

BENCHMARKS = {
    "calibration": calibration.run,
    "compile": compile_time.run,
    "graph_size": graph_size.run,
    "kernels": calibration_kernels.run,
    "distributed": distributed.run,
    "dynamic": dynamic.run,
    "weight_only": weight_only.run,
    "qat_step": qat_step.run,
}
# Their tables are printed as they are, however wide.
IN_MARKDOWN = {"accuracy": accuracy.run, "latency": latency.run, "traffic": traffic.run}


def main(names: list[str]) -> int:
    if names[:1] == ["zoo"]:
        return zoo.main(names[1:])
    if names and names[0] in IN_MARKDOWN:
        for part in IN_MARKDOWN[names[0]](names[1:]):
            print(part, flush=True)
        return 0
    if {"-h", "--help"} & set(names):
        print(f"{__doc__}\nThere are {', '.join(BENCHMARKS)}, zoo, accuracy, latency, traffic.")
        return 0
    unknown = sorted(set(names) - set(BENCHMARKS))
    console = Console(width=120)
    if unknown:
        there = f"{', '.join(BENCHMARKS)}; zoo, accuracy, latency and traffic, each alone"
        console.print(f"unknown benchmark {', '.join(unknown)}; there are {there}")
        return 2
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    for name in names or BENCHMARKS:
        for part in BENCHMARKS[name]():
            console.print(part)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
