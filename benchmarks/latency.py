"""How fast quantized files are in real runtimes, against float and against the files of peers: random weights."""

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.float_files import signal_to_noise_db
from benchmarks.latency_files import FLOAT, FXQ, PEERS, write_files
from benchmarks.latency_rows import Row, table, verdicts, what_is_left
from benchmarks.models import check_names, noise_images
from benchmarks.telling import say, write_parts
from fxq.errors import RuntimeCrashedError, RuntimeRefusedError
from fxq.runtimes import get_runtime, time_in_turn
from fxq.runtimes.child import in_child

MODELS = (
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "densenet121",
    "shufflenet_v2_x1_0",
    "regnet_y_400mf",
    "googlenet",
    "vit_small_patch16_224",
    "convnext_atto",
    "mobilevitv2_050",
)
RUNTIMES = ("onnxruntime", "openvino")
_WARM_UP = 5
_TIMEOUT_S = 300.0  # to load a file
_HEADING = (
    "One image of 224x224, random weights, files in turn. Ratios: of the time of the wall on {threads} threads, and in "
    "brackets of the CPU time on one, which others on the machine disturb less; below 1, fxq / peer is faster. SQNR "
    "beside the float file, on images that nothing was calibrated on. Operations: all that the runtime executes, those "
    "that read and write float, and quantizers that run by themselves. {versions}, {cores} cores.{tuned}"
)


def run(arguments: Sequence[str] = ()) -> Iterator[str]:
    """Measure one model after another, and yield the table, and what files are held to."""
    options = _options(arguments)
    check_names(options.models)
    versions = ", ".join(f"{name} {get_runtime(name).version.split('-')[0]}" for name in options.runtimes)
    tuned = " fxq's files are those of fxq.tune." if options.tuned else ""
    heading = _HEADING.format(threads=options.threads, versions=versions, cores=os.cpu_count(), tuned=tuned)
    rows: list[Row] = []
    notes: list[str] = []
    write_parts(options.out, [heading])  # a path that cannot be written fails before anything is measured
    for model in options.models:
        for runtime in options.runtimes:
            say(f"{model}: files for {runtime}")
            files, failures = write_files(
                model, runtime, options.folder, tuple(options.peers), options.peers_path, options.tuned
            )
            left, crashes = _left(model, runtime, files)
            notes += failures + crashes
            files = {method: files[method] for method in left}
            if FLOAT in files and FXQ in files:
                say(f"{model}: {runtime}")
                rows.append(measure(model, runtime, files, left, options.rounds, options.threads))
                write_parts(options.out, [heading, table(rows), *verdicts(rows), *notes])
                say(table(rows[-1:]).splitlines()[-1])
    yield from (heading, "", table(rows), "", *verdicts(rows), *notes)


def measure(
    model: str, runtime: str, files: Mapping[str, Path], left: Mapping[str, str], rounds: int, threads: int
) -> Row:
    """Time files in turn, by the wall on ``threads`` threads and by CPU time on one; ``left`` is known of each."""
    images = noise_images(4, seed=1).numpy()
    single, several = get_runtime(runtime, threads=1), get_runtime(runtime, threads=threads)
    outputs = {
        method: np.concatenate([single.run(path, images[i : i + 1])[0] for i in range(len(images))])
        for method, path in files.items()
    }
    times = [
        time_in_turn({m: found.bind(path, images[:1]) for m, path in files.items()}, rounds, _WARM_UP, clock)
        for found, clock in ((several, time.perf_counter), (single, time.process_time))
    ]
    sqnr_db = {m: signal_to_noise_db(outputs[FLOAT], found) for m, found in outputs.items() if m != FLOAT}
    return Row(model, runtime, *times, sqnr_db, left)


def _left(model: str, runtime: str, files: Mapping[str, Path]) -> tuple[dict[str, str], list[str]]:
    """Return what the runtime leaves outside of integers, by method, and which files it refuses or crashes on."""
    found, notes = {}, []
    for method, path in files.items():
        try:
            found[method] = in_child(
                left_of_file, path, runtime, what=f"{runtime} on {path.name}", timeout_s=_TIMEOUT_S
            )
        except (RuntimeRefusedError, RuntimeCrashedError) as error:
            notes.append(f"{model}, {method}: {error}")
    return found, notes


def left_of_file(path: Path, runtime: str) -> str:
    """Return what a runtime leaves outside of integers of a file, in words."""
    return what_is_left(get_runtime(runtime, threads=1).executed_ops(path), runtime)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks latency", description=__doc__)
    parser.add_argument("--models", nargs="+", metavar="NAME", default=MODELS, help="of torchvision or timm")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--peers-path", type=Path, metavar="FOLDER", help="of peers' packages that are not installed")
    parser.add_argument(
        "--tuned", action="store_true", help="fxq's files are those of fxq.tune, which measures on this machine"
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2, help="for the time of the wall (%(default)s)")
    parser.add_argument(
        "--folder", type=Path, required=True, help="where files are kept; those that are there are not written again"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="written anew after each row")
    return parser.parse_args(arguments)
