"""What the demo prints: the comparison, and what to try next."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxq.literal import literal
from fxq.runtimes.tensorrt_rtx import TensorRtRtx

_FOOTNOTE = (
    "Accuracy, SQNR and latency are those of ONNX Runtime on this CPU. tensorrt.onnx is made for NVIDIA GPUs, and has "
    "no latency here: "
)
_COMPILED = (
    "what it becomes there is what TensorRT-RTX's ahead-of-time compiler says, for one image on a GPU of the Ada "
    "generation: its kernels with weights that compute in int8, and the activations that all kernels read and write."
)
_NOT_COMPILED = f"with the packages {TensorRtRtx.package} the demo shows what their compiler makes of it."


@dataclass(frozen=True)
class Column:
    """What was measured of one file; None where there is nothing to measure, or nothing that means something here.

    ``compiled`` is what TensorRT-RTX makes of the file.
    """

    name: str
    accuracy: float
    sqnr_db: float | None
    size_bytes: int
    latency_ms: float | None
    quantizers: int | None
    residual_adds: int | None
    compiled: "Compiled | None" = None


@dataclass(frozen=True)
class Compiled:
    """What TensorRT-RTX's compiler says: kernels with weights, those of them on int8, megabytes of activations."""

    weighted_kernels: int
    int8_kernels: int
    traffic_mb: float


_COMPILED_ROWS: tuple[tuple[str, Callable[[Compiled], str]], ...] = (
    ("TensorRT: int8 kernels", lambda found: f"{found.int8_kernels} of {found.weighted_kernels}"),
    ("TensorRT: activations", lambda found: f"{found.traffic_mb:.2f} MB"),
)
_ROWS: tuple[tuple[str, Callable[[Column], str]], ...] = (
    ("accuracy on unseen digits", lambda column: f"{column.accuracy:.1%}"),
    ("SQNR of the logits", lambda column: "–" if column.sqnr_db is None else f"{column.sqnr_db:.1f} dB"),
    ("file size", lambda column: f"{column.size_bytes / 1e6:.2f} MB"),
    ("latency, one image", lambda column: "–" if column.latency_ms is None else f"{column.latency_ms:.2f} ms"),
    ("quantizers placed", lambda column: "–" if column.quantizers is None else str(column.quantizers)),
    ("residual adds found", lambda column: "–" if column.residual_adds is None else str(column.residual_adds)),
)


def results_table(columns: list[Column]) -> RenderableType:
    """Return the comparison, one column for each file."""
    table = Table(title="One ResNet, three ONNX files", title_justify="left")
    table.add_column("")
    for column in columns:
        kind = "float32" if column.quantizers is None else "int8"
        table.add_column(f"{column.name}\n[dim]{kind}[/]", justify="right")
    for label, cell in _ROWS:
        table.add_row(label, *(cell(column) for column in columns))
    compiled = any(column.compiled is not None for column in columns)
    for label, text in _COMPILED_ROWS if compiled else ():
        table.add_row(label, *("–" if column.compiled is None else text(column.compiled) for column in columns))
    return Group(table, Text(_FOOTNOTE + (_COMPILED if compiled else _NOT_COMPILED), style="dim"))


def next_steps(out: Path) -> Text:
    """Return where the files are, and commands to go on with."""
    return Text.assemble(
        "\nWrote ",
        (literal(str(out)), "bold"),
        "/{float,tensorrt,onnxruntime}.onnx, digits.pt, calibration.npy\n\n",
        ("The same by hand, and why each quantizer is where it is:\n", "dim"),
        f"  fxq quantize fxq.cli.demo_model:digits_resnet --weights {shlex.quote(str(out / 'digits.pt'))} \\\n"
        f"    --calib-data {shlex.quote(str(out / 'calibration.npy'))} --recipe tensorrt --out model.onnx\n"
        "  fxq explain fxq.cli.demo_model:digits_resnet --recipe tensorrt",
    )
