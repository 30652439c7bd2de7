"""How far quantized models are from float, at each level of accuracy, against peers: trained models on data unseen."""

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

import fxq
from benchmarks.accuracy_peers import PEERS, failure, measure_peer, run_file
from benchmarks.accuracy_rows import Row, ahead_of_peers, file_as_module, model_table, never_worse, summary
from benchmarks.lab import Case, Lab, NoLabError, load
from benchmarks.telling import say, write_parts
from fxq.runtimes import get_runtime

TARGETS, LEVELS = ("tensorrt", "onnxruntime", "openvino"), ("plain", "fast", "best")
HEADING = (
    "Trained models, calibrated on one part of their data and evaluated on another; SQNR of the first output beside "
    "the float model's. CPU s: of prepare and calibrate, or of the peer's call."
)


def run(arguments: Sequence[str] = ()) -> Iterator[str]:
    """Measure, and yield the table of each model as soon as it is complete; then what is over all of them."""
    options = _options(arguments)
    lab = Lab(options.lab, options.seed, options.other_photos)
    try:
        names = lab.names(options.models)
    except NoLabError as error:
        raise SystemExit(f"accuracy: {error}") from error
    rows: list[Row] = []
    parts = [_heading(lab)]
    write_parts(options.out, parts)  # a path that cannot be written fails before anything is measured
    yield parts[0]
    for name in names:
        found: list[Row] = []
        for row in _measure(name, lab, options):
            found.append(row)
            write_parts(options.out, [*parts, model_table(found), *_over_all([*rows, *found])])
        rows += found
        parts.append(model_table(found))
        yield f"\n{parts[-1]}"
    for part in _over_all(rows):
        yield f"\n{part}"


def _heading(lab: Lab) -> str:
    versions = f"torch {torch.__version__}, onnxruntime {get_runtime('onnxruntime').version}"
    photos = ", other photos" if lab.other_photos else ""
    return f"{HEADING}\n{versions}, {torch.get_num_threads()} threads, {os.cpu_count()} cores; seed {lab.seed}{photos}."


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks accuracy", description=__doc__)
    parser.add_argument("--lab", type=Path, default=Path("../shared/lab"), help="folder of the models (%(default)s)")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="of the lab; without, all of them")
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=TARGETS)
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=LEVELS)
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=tuple(PEERS), metavar="PEER", help=", ".join(PEERS)
    )
    parser.add_argument("--peers-path", type=Path, metavar="FOLDER", help="of peers' packages that are not installed")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of the data (%(default)s)")
    parser.add_argument(
        "--other-photos", action="store_true", help="calibrate mobilenet_v2 on five photos, evaluate it on three others"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="written anew after each row")
    return parser.parse_args(arguments)


def _measure(name: str, lab: Lab, options: argparse.Namespace) -> Iterator[Row]:
    say(f"{name}: loading")
    try:
        case = load(lab, name)
    except NoLabError as error:
        yield Row(name, "", note=str(error))
        return
    yield float_row(case)
    for target in options.targets:
        for level in options.levels:
            say(f"{name}: {target}, {level}")
            yield measure(case, target, level, lab.seed)
    for peer in options.peers:
        say(f"{name}: {peer}")
        yield measure_peer(peer, name, lab, options.peers_path)


def float_row(case: Case) -> Row:
    """Return the row of the float model: the figures of the task that it reaches itself."""
    return Row(case.name, "float", figures=case.figures(case.reference))


def measure(case: Case, target: str, level: str, seed: int = 0) -> Row:
    """Return the row of fxq: of the converted module and of the file."""
    row = Row(case.name, f"fxq {target}, {level}", target, level)
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about results far from float, which are the subject here
            start = time.process_time()
            recipe = fxq.recipe(target).with_accuracy(level)
            prepared = fxq.prepare(case.model, case.calibration[0], recipe)
            report = fxq.calibrate(prepared, case.calibration, progress=False)
            seconds = time.process_time() - start
            converted = fxq.convert(prepared)
            sqnr_db, figures = case.evaluate(converted)
            undone = ", ".join(step.name for step in report.steps if not step.kept)
            note = undone and f"undone: {undone}"
            row = replace(row, sqnr_db=sqnr_db, figures=figures, seconds=seconds, note=note)
            return replace(row, file_db=_file_db(case, converted))
    except Exception as error:  # the other rows go on; this one says it, with what was measured before
        return replace(row, note=failure(error))


def _file_db(case: Case, converted: torch.fx.GraphModule) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        fxq.export_onnx(converted, path, dynamic_batch=True)
        sqnr_db, _ = case.evaluate(run_file(path))
    return sqnr_db


def _over_all(rows: list[Row]) -> list[str]:
    return [summary(rows), never_worse(rows), file_as_module(rows), ahead_of_peers(rows)]
