"""Report: all that is shown of a quantized model, as plain data; ``write`` makes a page or JSON of it."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from fxq.calibration_report import CalibrationReport
from fxq.compare.quality import Quality
from fxq.comparison_report import Comparison
from fxq.coverage import Coverage
from fxq.errors import ExportError, MissingExtraError
from fxq.explanation import QuantizedTensor
from fxq.literal import literal
from fxq.output_file import OutputFile
from fxq.plain_data import plain_data
from fxq.runtimes import Latency
from fxq.sensitivity_report import Sensitivity
from fxq.verification.finding import Finding

SUFFIXES = (".html", ".htm", ".json")


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of one width over [low, high]; of |x| where ``is_absolute``."""

    low: float
    high: float
    counts: tuple[int, ...]
    is_absolute: bool = False


@dataclass(frozen=True)
class TensorRange:
    """One tensor that is quantized.

    Args:
        quantizer: path of its quantizer.
        is_weight: it is stored, and no activation.
        low, high: the fitted range, the outermost of all channels; None where there is none, or it is measured as the
            model runs.
        ranges: how many there are: one for each channel or block, or 1.
        histogram: of the values; None where they were not seen.
    """

    quantizer: str
    is_weight: bool
    low: float | None
    high: float | None
    ranges: int
    histogram: Histogram | None


@dataclass(frozen=True)
class GraphNode:
    """One operation, input or output of the graph.

    Args:
        node: its name in the graph.
        path: the name that a rule has for it.
        kind: what it computes, such as "conv".
        shape: of its result; None where it is not known.
        quantized: the quantized tensors that it reads, and how and why.
        reason: why nothing was quantized for it; "" where something was.
    """

    node: str
    path: str
    kind: str
    shape: tuple[int, ...] | None
    quantized: tuple[QuantizedTensor, ...]
    reason: str


@dataclass(frozen=True)
class GraphEdge:
    """A tensor from one node to another, by their places in ``Report.nodes``; ``quantizer`` None: it is in float."""

    source: int
    target: int
    quantizer: str | None


@dataclass(frozen=True)
class Size:
    """Bytes: of all weights in float, of the same with those quantized that are, and of the file. None: not known."""

    float_bytes: int | None
    quantized_bytes: int
    file_bytes: int | None = None


@dataclass(frozen=True, repr=False)
class Report:
    """What ``fxq.report`` returns.

    Args:
        model: its class.
        stage: "prepared", "calibrated" or "lowered".
        recipe, target: their names.
        coverage: which layers compute with integers.
        counts: how many tensor readings are quantized, by role.
        quality: how close it is to the float model; None where it was not measured.
        size: of its weights.
        latency: how long it takes, by what was timed.
        nodes, edges: the graph.
        tensors: what is quantized, with ranges and histograms.
        comparison: how far each layer is from the float model.
        sensitivity: what each group of operations costs.
        calibration: what each pass with data did.
        findings: what ``fxq.verify`` found.
        notes: what is to be known, and what was not measured.
    """

    model: str
    stage: str
    recipe: str
    target: str
    coverage: Coverage
    counts: Mapping[str, int]
    quality: Quality | None
    size: Size
    latency: Mapping[str, Latency]
    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]
    tensors: tuple[TensorRange, ...]
    comparison: Comparison | None = None
    sensitivity: Sensitivity | None = None
    calibration: CalibrationReport | None = None
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        quality = "accuracy not measured" if self.quality is None else str(self.quality)
        return literal(f"report on {self.model}, {self.stage} by {self.recipe}: {self.coverage}; {quality}")

    __repr__ = __str__  # the data are thousands of lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as JSON holds it: infinities and NaN as text, such as "inf"."""
        rest = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        rest["latency"] = {
            name: {"median_ms": found.median_ms, "spread_ms": found.spread_ms, "rounds": len(found.rounds_ms)}
            for name, found in self.latency.items()
        }
        if self.quality is not None:
            rest["quality"] = {**dataclasses.asdict(self.quality), "verdict": self.quality.verdict}
        found: dict[str, Any] = plain_data(rest)
        return found

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a page (``.html``) or JSON (``.json``), whole or not at all.

        Raises:
            ExportError: it cannot be written there, or the suffix is another.
            MissingExtraError: a page, and bokeh, which draws it, is not installed.
        """
        out = check_place(path)
        if out.path.suffix == ".json":
            text = json.dumps(self.to_dict(), indent=1)
        else:
            from fxq.reporting.page import render_page  # noqa: PLC0415 - what draws is optional, and takes a second

            text = render_page(self)
        with out.staging() as folder:
            staged = folder / "report"
            staged.write_text(text, encoding="utf-8")
            staged.replace(out.real)


def check_place(path: str | os.PathLike[str]) -> OutputFile:
    """Return the place of a report; raises as ``Report.write`` does."""
    out = OutputFile(path)
    if out.path.suffix not in SUFFIXES:
        raise ExportError(f"cannot write {out.path}: the suffix says in which form, .html for a page or .json for data")
    if out.path.suffix != ".json" and find_spec("bokeh") is None:
        raise MissingExtraError("a report as a page needs bokeh: pip install 'fxq[report]'; .json does without")
    return out
