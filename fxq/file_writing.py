"""Write a converted graph as a file, and judge what ONNX Runtime makes of it; islands as a file each."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule

from fxq.batches import ExampleInputs, as_positional
from fxq.compare.quality import GOOD_DB, Quality
from fxq.coverage import Coverage
from fxq.errors import AccuracyError, ExportError, InputError
from fxq.islands.export import export_islands
from fxq.islands.layout import Islands
from fxq.model_checks import levels_to_caller
from fxq.stage import Stage
from fxq.state import State, find_state, require_state
from fxq.verdict import judge

if TYPE_CHECKING:
    from fxq.export import ExportReport

# Other formats, and what makes them.
_OF_OTHERS = MappingProxyType({
    ".engine": "trtexec --onnx=FILE --saveEngine=FILE", ".plan": "trtexec --onnx=FILE --saveEngine=FILE",
    ".trt": "trtexec --onnx=FILE --saveEngine=FILE", ".xml": "openvino.convert_model", ".bin": "openvino.convert_model",
})  # fmt: skip
# Rounding to 16 bits is some 60 dB down (float16) or 45 (bfloat16), where int8 is 20 to 40.
_LOST_DB = 1.0


@dataclass(frozen=True)
class FileRequest:
    """What ``fxq.export_onnx`` was asked for; the fields are its arguments."""

    dynamic_batch: bool | None = None
    check: bool = True
    min_sqnr_db: float | None = None
    strict: bool = False
    dynamic_shapes: Mapping[str, Any] | Sequence[Any] | None = None
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    opset: int | None = None
    float_dtype: torch.dtype | None = None
    keep_io_types: bool = False


def write_file(
    converted: GraphModule, path: str | os.PathLike[str], example_inputs: ExampleInputs, request: FileRequest
) -> "ExportReport":
    """Write one converted graph, or the file of each island in it; raises as ``fxq.export_onnx``."""
    found = find_state(converted)
    is_integer = found is not None and found.stage is Stage.INTEGER
    state = require_state(converted, Stage.INTEGER if is_integer else Stage.LOWERED, "export_onnx")
    suffix = PurePath(path).suffix.lower() if isinstance(path, str | PurePath) else ""
    if suffix in _OF_OTHERS:
        raise ExportError(
            f"cannot write {path}: the file is ONNX, name it .onnx; {_OF_OTHERS[suffix]} makes a {suffix} of it"
        )
    if state.islands is not None:
        return _write_islands(converted, state, state.islands, path, example_inputs, request)
    coverage = Coverage() if state.explanation is None else state.explanation.coverage
    report = _write(converted, state, path, example_inputs, request, _judge_of(state, coverage, request))
    return replace(report, coverage=coverage)


def _write_islands(
    converted: GraphModule,
    state: State,
    islands: Islands,
    path: str | os.PathLike[str],
    example_inputs: ExampleInputs,
    request: FileRequest,
) -> "ExportReport":
    """Write a file for each island, and the whole where torch can: how good that is was said of the converted model."""
    if any(named is not None for named in (request.dynamic_shapes, request.input_names, request.output_names)):
        raise InputError(
            "dynamic_shapes, input_names and output_names are of one file, and islands become several: export an "
            "island by itself, fxq.export_onnx(converted.get_submodule(...), ...)"
        )
    return export_islands(
        converted,
        state,
        islands,
        path,
        lambda island, file: write_file(island, file, None, request),
        lambda file: _write(converted, state, file, example_inputs, request, None),
    )


def _write(
    converted: GraphModule,
    state: State,
    path: str | os.PathLike[str],
    example_inputs: ExampleInputs,
    request: FileRequest,
    judge_file: Callable[[Quality], None] | None,
) -> "ExportReport":
    inputs = as_positional(converted, example_inputs) or state.settings.example_inputs
    if inputs is None:
        raise InputError("export_onnx runs the model once: give it example_inputs, or give them to prepare()")
    # Importing the ONNX libraries takes as long as importing torch; only exporting needs them.
    from fxq.export import ExportOptions, export_onnx  # noqa: PLC0415

    options = ExportOptions(
        dynamic_batch=request.dynamic_batch,
        dynamic_shapes=request.dynamic_shapes,
        input_names=request.input_names,
        output_names=request.output_names,
        opset=request.opset,
        check=request.check,
        rules=state.settings.target.file,
        metadata={"fxq.version": version("fxq"), "fxq.recipe": state.recipe.to_text()},
        float_reference=None if judge_file is None else state.reference,
        original=None if judge_file is None else state.original,
        decisions=state.decisions,
        judge=judge_file,
        float_dtype=request.float_dtype,
        keep_io_types=request.keep_io_types,
    )
    report = export_onnx(converted, path, inputs, options)
    _warn_of_loss(report)
    return report


def _warn_of_loss(report: "ExportReport") -> None:
    """Warn where the dtype of the file's float side made it less like the float model."""
    if report.quality is None or report.float32_quality is None:
        return
    for before, after in zip(report.float32_quality.outputs, report.quality.outputs, strict=True):
        if before.judged_db is None or after.judged_db is None:
            continue
        if after.judged_db >= min(GOOD_DB, before.judged_db - _LOST_DB):
            continue
        other = "bfloat16 has float32's range" if report.float_dtype == "float16" else "float16 is more precise"
        warnings.warn(
            f"with a float side in {report.float_dtype} output {after.name!r} has {after.judged_db:.1f} dB against the "
            f"float model, in float32 {before.judged_db:.1f}: {other}, or leave float_dtype out",
            stacklevel=levels_to_caller(),
        )


def _judge_of(state: State, coverage: Coverage, request: FileRequest) -> Callable[[Quality], None]:
    """Return what warns, or raises, where a file is too far from the float model or from the converted one."""
    least = state.recipe.min_sqnr_db if request.min_sqnr_db is None else request.min_sqnr_db
    known = None if state.explanation is None else state.explanation.quality
    level = levels_to_caller()

    def judge_file(quality: Quality) -> None:
        # What convert has said already is not said again.
        is_said = (
            request.min_sqnr_db is None and known is not None and known.sqnr_db is not None and known.sqnr_db < least
        )
        if known is not None and _is_worse(quality, known):
            message = (
                f"the file in ONNX Runtime is worse than the converted model: {quality.worst}, and the model had "
                f"{known.worst}. Its fusions round more than the model does, or compute something else"
            )
            if request.strict:
                raise AccuracyError(message)
            warnings.warn(message, stacklevel=level)
        if request.strict or not is_said:
            judge("the file in ONNX Runtime", quality, coverage, least, request.strict, list, level)

    return judge_file


def _is_worse(file: Quality, converted: Quality) -> bool:
    """Return whether the file is far less like the float model than the converted model is, and not good anyway."""
    pairs = zip(file.outputs, converted.outputs, strict=True)
    return any(
        after.judged_db is not None
        and before.judged_db is not None
        and after.judged_db < min(GOOD_DB, before.judged_db - 6)
        for after, before in pairs
    )
