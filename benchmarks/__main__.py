"""Run the benchmarks: ``uv run python -m benchmarks [NAME ...]``; without a name, all but ``zoo`` and ``accuracy``.

Those two have options of their own (``--help``): one sweeps architectures, the other needs a folder of trained models.
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
    onnxruntime_latency,
    qat_step,
    weight_only,
    zoo,
)

BENCHMARKS = {
    "calibration": calibration.run,
    "onnxruntime": onnxruntime_latency.run,
    "compile": compile_time.run,
    "graph_size": graph_size.run,
    "kernels": calibration_kernels.run,
    "distributed": distributed.run,
    "dynamic": dynamic.run,
    "weight_only": weight_only.run,
    "qat_step": qat_step.run,
}


def main(names: list[str]) -> int:
    if names[:1] == ["zoo"]:
        return zoo.main(names[1:])
    if names[:1] == ["accuracy"]:  # its tables are Markdown, however wide
        for part in accuracy.run(names[1:]):
            print(part, flush=True)
        return 0
    if {"-h", "--help"} & set(names):
        print(f"{__doc__}\nThere are {', '.join(BENCHMARKS)}, zoo.")
        return 0
    unknown = sorted(set(names) - set(BENCHMARKS))
    console = Console(width=120)
    if unknown:
        console.print(
            f"unknown benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}, zoo and accuracy, each alone"
        )
        return 2
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    for name in names or BENCHMARKS:
        for part in BENCHMARKS[name]():
            console.print(part)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
