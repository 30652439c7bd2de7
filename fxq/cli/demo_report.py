"""What the demo prints: the comparison, and what to try next."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxq.literal import literal

_FOOTNOTE = (
    "All files run in ONNX Runtime on this CPU. * tensorrt.onnx is made for NVIDIA GPUs: its placement suits "
    "TensorRT's kernels, and is not meant to be fast here."
)


@dataclass(frozen=True)
class Column:
    """What was measured of one file; None where there is nothing to measure (the float file)."""

    name: str
    accuracy: float
    sqnr_db: float | None
    size_bytes: int
    latency_ms: float
    quantizers: int | None
    residual_adds: int | None


_ROWS: tuple[tuple[str, Callable[[Column], str]], ...] = (
    ("accuracy on unseen digits", lambda column: f"{column.accuracy:.1%}"),
    ("SQNR of the logits", lambda column: "–" if column.sqnr_db is None else f"{column.sqnr_db:.1f} dB"),
    ("file size", lambda column: f"{column.size_bytes / 1e6:.2f} MB"),
    ("latency, one image", lambda column: f"{column.latency_ms:.2f} ms"),
    ("quantizers placed", lambda column: "–" if column.quantizers is None else str(column.quantizers)),
    ("residual adds found", lambda column: "–" if column.residual_adds is None else str(column.residual_adds)),
)


def results_table(columns: list[Column]) -> RenderableType:
    """Return the comparison, one column for each file."""
    table = Table(title="One ResNet, three ONNX files", title_justify="left")
    table.add_column("")
    for column in columns:
        kind = "float32" if column.quantizers is None else "int8"
        mark = "*" if column.name == "tensorrt" else ""
        table.add_column(f"{column.name}{mark}\n[dim]{kind}[/]", justify="right")
    for label, cell in _ROWS:
        table.add_row(label, *(cell(column) for column in columns))
    return Group(table, Text(_FOOTNOTE, style="dim"))


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
