"""``fxq.bench``: how long ONNX files take, in turn, in each runtime that is here."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fxq.errors import InputError, RuntimeRefusedError, RuntimeUnavailableError
from fxq.runtimes import RUNTIMES, Latency, Runtime, get_runtime
from fxq.runtimes.child import in_child
from fxq.runtimes.surviving import Timed, time_survivors
from fxq.verification.bench_report import BenchReport, BenchRow
from fxq.verification.onnx_file import as_path, read_any
from fxq.verification.shapes import Shapes, check_all_known, read_profile

_SEED = 0


def time_files(
    paths: Sequence[str | os.PathLike[str]],
    runtimes: Sequence[str] | None,
    shapes: Shapes | None,
    threads: int | None,
    rounds: int,
    warm_up: int,
) -> BenchReport:
    """Do what ``fxq.bench`` says."""
    if not paths:
        raise InputError("bench needs the path of an ONNX file")
    if rounds < 1 or warm_up < 0:
        raise InputError(f"rounds must be at least 1 and warm_up at least 0; got {rounds} and {warm_up}")
    files = [as_path(path) for path in paths]
    inputs = _inputs([read_any(file) for file in files], files, shapes)
    rows: list[BenchRow] = []
    notes: list[str] = []
    for name in _chosen(runtimes):
        options: dict[str, Any] = {}
        if any(field.name == "threads" for field in fields(RUNTIMES[name])):
            options["threads"] = threads
        pairs = list(zip(files, inputs, strict=True))
        timed = _timed(name, get_runtime(name, **options), pairs, rounds, warm_up)
        rows += _rows(name, paths, timed)
        notes += _notes(name, files, timed)
    if not rows:
        raise RuntimeRefusedError("; ".join(notes))
    absent = [f"{name} is not installed: pip install {row.package}" for name, row in RUNTIMES.items() if _lacks(name)]
    return BenchReport(tuple(rows), _in_words(files, inputs), (*notes, *(absent if runtimes is None else [])))


def _timed(name: str, runtime: Runtime, pairs: Sequence[tuple[Path, Any]], rounds: int, warm_up: int) -> Timed:
    def in_turn(files: Sequence[tuple[Path, Any]]) -> Sequence[Latency]:
        what = f"{name} on {', '.join(file.name for file, _ in files)}"
        try:
            return in_child(runtime.latencies, files, rounds, warm_up, what=what)
        except InputError as error:  # they were made for the file: it is the runtime that does not take their type
            raise RuntimeRefusedError(f"{what}: {error}") from error

    return time_survivors(in_turn, pairs)


def _rows(runtime: str, paths: Sequence[str | os.PathLike[str]], timed: Timed) -> Iterator[BenchRow]:
    first = timed.latencies[0] if timed.in_turn else None
    for index, (path, latency) in enumerate(zip(paths, timed.latencies, strict=True)):
        if latency is not None:
            ratios = latency.ratio_quartiles(first) if index and first is not None else None
            yield BenchRow(runtime, os.fspath(path), latency, ratios)


def _notes(runtime: str, files: Sequence[Path], timed: Timed) -> Iterator[str]:
    """Yield what does not run, and what is not compared for that."""
    yield from timed.errors.values()
    if 0 in timed.errors and any(timed.latencies):
        yield f"{runtime}: nothing is compared with {files[0].name}, which does not run"
    if timed.failure:
        what_then = "in a second try they ran" if timed.in_turn else "they were timed so, and are not compared"
        yield f"{timed.failure}; each of them runs by itself, and {what_then}"


def _chosen(names: Sequence[str] | None) -> list[str]:
    if names is None:
        found = [name for name, runtime in RUNTIMES.items() if runtime.runs_here and runtime.is_installed()]
        if not found:
            raise RuntimeUnavailableError("no runtime is installed that could run a file: pip install onnxruntime")
        return found
    for name in names:
        get_runtime(name)
        if not RUNTIMES[name].runs_here:
            raise RuntimeUnavailableError(
                f"{name} compiles files and does not run them here; fxq verify shows its plan"
            )
        if not RUNTIMES[name].is_installed():
            raise RuntimeUnavailableError(f"{name} is not installed: pip install {RUNTIMES[name].package}")
    return list(dict.fromkeys(names))


def _lacks(name: str) -> bool:
    return RUNTIMES[name].runs_here and not RUNTIMES[name].is_installed()


def _inputs(models: list[ir.Model], files: list[Path], shapes: Shapes | None) -> list[dict[str, np.ndarray]]:
    """Return arrays for each file by the names of its inputs; equal inputs of two files have equal values."""
    names = {str(value.name) for model in models for value in model.graph.inputs}
    for name in shapes or {}:
        if name not in names:
            raise InputError(f"shapes: no file has an input {name!r}; inputs: {', '.join(sorted(names))}")
    found = []
    for model, file in zip(models, files, strict=True):
        own = {name: given for name, given in (shapes or {}).items() if name in {v.name for v in model.graph.inputs}}
        profile = read_profile(file, model, own)
        usual = {name: sizes[1] for name, sizes in profile.items()}
        check_all_known(file, _with_batch_1(model), profile, "bench")
        wanted = [value for value in model.graph.inputs if not value.is_initializer()]
        found.append({str(value.name): _random(value, usual.get(str(value.name))) for value in wanted})
    return found


def _with_batch_1(model: ir.Model) -> ir.Model:
    """Fix open first sizes, which nobody need tell: latency is that of one sample."""
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
            value.shape = ir.Shape([1, *list(value.shape)[1:]])
    return model


def _random(value: ir.Value, shape: tuple[int, ...] | None) -> np.ndarray:
    sizes = shape if shape is not None else tuple(int(size) for size in value.shape or ())  # type: ignore[arg-type]  # checked: none is open
    onnx_type = ir.DataType.FLOAT if value.dtype is None else value.dtype
    dtype = onnx_type.numpy()
    if onnx_type.is_floating_point():  # to numpy, bfloat16 is none
        return np.random.default_rng(_SEED).standard_normal(sizes).astype(dtype)
    # Indices and masks: 0 is a row of every table, and a mask that lets all through keeps the work.
    return np.ones(sizes, dtype) if dtype == np.bool_ else np.zeros(sizes, dtype)


def _in_words(files: list[Path], inputs: list[dict[str, np.ndarray]]) -> tuple[str, ...]:
    texts = [
        ", ".join(f"{name} {array.dtype} {'x'.join(map(str, array.shape))}" for name, array in arrays.items())
        for arrays in inputs
    ]
    if len(set(texts)) == 1:
        return (f"inputs: {texts[0]}",)
    return tuple(f"inputs of {file.name}: {text}" for file, text in zip(files, texts, strict=True))
