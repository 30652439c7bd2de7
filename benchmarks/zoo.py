"""Sweep the zoo: ``python -m benchmarks zoo [MODEL ...]``; the table is ``benchmarks/zoo.md``.

A model that has a result is left alone, so that a sweep can be continued. Each runs in a process that is ended after
the time limit; the process serves the next model too, for importing takes longer than most models.
"""

import argparse
import gc
import math
import multiprocessing
import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch.fx import GraphModule

import fxq
from benchmarks.zoo_models import build, families, fit_batch_norms, inputs_of, smallest
from benchmarks.zoo_row import Row, read_rows, table
from fxq.explanation import Explanation, NodeExplanation

TABLE = Path(__file__).with_name("zoo.md")
EXPORTED = 10  # every tenth
_SECONDS_TO_END = 3
_NAMES = re.compile(r"'[^']*'")  # of nodes and modules, which part one reason from another
_PRODUCTS = re.compile(r"matmul|attention|einsum|addmm|baddbmm|bmm|mm")


def main(arguments: Sequence[str]) -> int:
    """Run the sweep that the command line asks for, and write the table after each model."""
    options = _options(arguments)
    wanted = families()
    rows = read_rows(options.out.read_text()) if options.out.exists() else {}
    chosen = [row for index, row in enumerate(wanted) if _is_chosen(row, index, wanted[row], options)]
    chosen = [row for row in chosen if options.again or row not in rows or not rows[row].has_run]
    worker = Worker(options)
    try:
        for row in track(chosen, f"{len(chosen)} models"):
            export = [*wanted].index(row) % EXPORTED == 0
            rows[row] = worker.run(row, wanted[row], export)
            ordered = [rows[name] for name in wanted if name in rows]
            options.out.write_text(table(ordered, len(wanted), options.recipe))
    finally:
        worker.end()
    return 0


class Worker:
    """The process that runs the models; started when one is to run, and again after it was ended."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.process: Any = None
        self.connection: Connection

    def run(self, row: str, names: Sequence[str], export: bool) -> Row:
        """Return the row of a model, or why there is none."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, self.options), daemon=True)
            self.process.start()
            theirs.close()
        self.connection.send((row, names, export))
        try:
            if self.connection.poll(self.options.seconds):
                return self.connection.recv()  # type: ignore[no-any-return]
            reason = f"not run: not done after {self.options.seconds} s"
        except EOFError:
            reason = "not run: the process ended, as when memory is short"
        self.end()
        return Row(row, names[0], reason)

    def end(self) -> None:
        """End the process, gently where it has nothing to do."""
        if self.process is None:
            return
        self.connection.close()
        self.process.join(_SECONDS_TO_END)
        self.process.kill()
        self.process.join()
        self.process = None


def sweep(row: str, names: Sequence[str], export: bool, options: argparse.Namespace) -> Row:
    """Return what becomes of the smallest of ``names``."""
    library, name = row.partition("/")[0], smallest(names)
    try:
        model = build(library, name)
        parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        if parameters > options.millions:
            return Row(row, name, f"not run: {parameters:.0f} million parameters are more than {options.millions}")
        inputs = inputs_of(library, name, model)
        fit_batch_norms(model, inputs)
    except Exception as error:  # the model's own code
        return Row(row, name, f"not run: {type(error).__name__}: {str(error)[:200]}")
    start = time.process_time()
    try:
        prepared = fxq.prepare(model, inputs, options.recipe, untraceable="islands")
        fxq.calibrate(prepared, [inputs], progress=False)
        converted = fxq.convert(prepared, min_sqnr_db=-math.inf)
        seconds = time.process_time() - start
        explanation = fxq.explain(converted)
        quantized, reasons = layers_of(explanation)
        total = quantized + sum(reasons.values())
        file = _exported(converted) if export else ""
    except Exception as error:  # a fault of fxq is a row too
        return Row(row, name, f"refused: {type(error).__name__}: {str(error)[:500]}")
    return Row(row, name, "", len(explanation.nodes), quantized, total, reasons, seconds, file)


def layers_of(explanation: Explanation) -> tuple[int, Mapping[str, int]]:
    """Return how many layers and products compute in integers, and why the others do not, counted."""
    nodes = {name: node for node in explanation.nodes for name in (node.path, node.node)}
    products = [node for node in explanation.nodes if _PRODUCTS.fullmatch(node.kind)]
    in_float = [*explanation.coverage.in_float, *(node.path for node in products if not _is_integer(node))]
    reasons = Counter(_why(name, nodes) for name in dict.fromkeys(in_float))
    quantized = {*explanation.coverage.quantized, *(node.path for node in products if _is_integer(node))}
    return len(quantized), reasons


def _is_integer(node: NodeExplanation) -> bool:
    return len(node.quantized) > 1


def _why(name: str, nodes: Mapping[str, NodeExplanation]) -> str:
    while name and name not in nodes:  # a layer in a module that is one operation
        name = name.rpartition(".")[0]
    if not name:
        return "without a reason"
    reason = nodes[name].reason or "one operand is not quantized"
    return f"{nodes[name].kind}: {_NAMES.sub('...', reason)}"


def _exported(converted: GraphModule) -> str:
    with tempfile.TemporaryDirectory() as folder:
        has_islands = any(isinstance(part, GraphModule) and part is not converted for part in converted.modules())
        path = Path(folder) / ("islands" if has_islands else "model.onnx")
        report = fxq.export_onnx(converted, path, min_sqnr_db=-math.inf)
    found = [one.quality for one in ([*report.islands.values()] or [report])]
    figures = [quality.sqnr_db for quality in found if quality is not None and quality.sqnr_db is not None]
    return f"{min(figures):.1f}" if figures else "runs"


def _serve(connection: Connection, options: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")  # of untrained models there is much to say
    torch.set_num_threads(1)
    for row, names, export in _asked(connection):
        connection.send(sweep(row, names, export, options))
        gc.collect()


def _asked(connection: Connection) -> Iterator[Any]:
    while True:
        try:
            yield connection.recv()
        except EOFError:
            return


def _is_chosen(row: str, index: int, names: Sequence[str], options: argparse.Namespace) -> bool:
    if options.models:
        return any(model in (row, *names) for model in options.models)
    return index % options.every == 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks zoo", description=__doc__)
    parser.add_argument("models", nargs="*", help="names of models, families (timm/vit); none for all")
    parser.add_argument("--recipe", default="tensorrt")
    parser.add_argument("--every", type=int, default=1, help="take every Nth model")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--seconds", type=float, default=300, help="time limit of a model")
    parser.add_argument(
        "--millions", type=float, default=700, help="leave out models with more parameters, in millions"
    )
    parser.add_argument("--out", type=Path, default=TABLE)
    return parser.parse_args(arguments)
