"""Write islands as ONNX files: one for each, and the whole where torch can export the Python around them."""

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from torch.fx import GraphModule

from fxq.coverage import Coverage
from fxq.errors import ExportError, InputError
from fxq.islands.layout import Islands
from fxq.state import State

if TYPE_CHECKING:
    from fxq.export import ExportReport

WHOLE = "whole.onnx"
_WIDTH = 400  # of a reason: torch's may go on for pages


def export_islands(
    converted: GraphModule,
    state: State,
    islands: Islands,
    path: str | os.PathLike[str],
    export: "Callable[[GraphModule, Path], ExportReport]",
    export_whole: "Callable[[Path], ExportReport]",
) -> "ExportReport":
    """Write ``path/ISLAND.onnx`` for each island, and ``path/whole.onnx`` where that is possible.

    Args:
        converted: the whole.
        state: its state.
        islands: where they are.
        path: a folder; it is made where its parent is there.
        export: writes one island.
        export_whole: writes the whole; what it raises is told in the report.

    Raises:
        ExportError: an island cannot be written; the files of the others are.
    """
    # Importing the ONNX libraries takes as long as importing torch; only exporting needs them.
    from fxq.export import ExportReport  # noqa: PLC0415

    folder = Path(path)
    if folder.suffix == ".onnx":
        raise ExportError(
            f"cannot write {folder}: each of the {len(islands.paths)} islands of the model becomes a file, so name a "
            "folder for them"
        )
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    written: dict[str, ExportReport] = {}
    failed: dict[str, FxqFailure] = {}
    for name, island in islands.modules(converted).items():
        try:
            written[name] = export(island, folder / f"{name}.onnx")
        except (ExportError, InputError) as error:
            failed[name] = error
    if failed:
        reasons = "; ".join(f"the island {name!r}: {error}" for name, error in failed.items())
        others = f" (written: {', '.join(written)})" if written else ""
        raise ExportError(f"{reasons}{others}") from next(iter(failed.values()))
    whole, note = _try_whole(folder / WHOLE, export_whole)
    reports = [*written.values(), *([] if whole is None else [whole])]
    return ExportReport(
        path=folder,
        opset=max(one.opset for one in reports),
        size_bytes=sum(one.size_bytes for one in reports),
        quantize_nodes=sum(one.quantize_nodes for one in written.values()),
        dequantize_nodes=sum(one.dequantize_nodes for one in written.values()),
        dynamic_nodes=sum(one.dynamic_nodes for one in written.values()),
        dynamic_batch=any(one.dynamic_batch for one in written.values()),
        coverage=Coverage() if state.explanation is None else state.explanation.coverage,
        islands=written,
        whole=whole,
        notes=(note,) if note else (),
    )


FxqFailure = ExportError | InputError


def _try_whole(path: Path, export: "Callable[[Path], ExportReport]") -> "tuple[ExportReport | None, str]":
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # torch.export prints there all that it traced before it failed
            return export(path), ""
    except (ExportError, InputError) as error:
        return None, shorten(f"the whole is no file, for its Python does not export: {error}", _WIDTH)
