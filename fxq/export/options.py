"""What a caller may choose about an export, and what an export reports back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fxq.compare.parity import MAX_BEYOND, MAX_LSB, MAX_MEAN_LSB, OutputParity
from fxq.compare.quality import Quality
from fxq.coverage import Coverage
from fxq.export.dynamic_shapes import Shapes, open_shapes
from fxq.export.open_shapes import BATCH, OpenShapes
from fxq.float_reference import FloatReference
from fxq.graph.size_decisions import SizeDecisions
from fxq.original import Original
from fxq.targets import FileRules

_ANY_FILE = FileRules()


@dataclass(frozen=True)
class ExportOptions:
    """How to write the file.

    Args:
        dynamic_batch: dimension 0 of every input is dynamic; None leaves it to ``rules``, or to ``dynamic_shapes``.
        dynamic_shapes: which dimensions stay open, and their names: fxq/export/dynamic_shapes.py. None for the batch.
        input_names, output_names: names in the file, in order; None for those of the model.
        opset: of the file; None for the lowest that holds it.
        check: check the file, and compare it with the model in ONNX Runtime, before it takes its place: as it is
            written, with the default optimizations, and with these at other sizes of each dimension that is open.
        rules: what the runtime demands.
        metadata: text to store in the file (``metadata_props``).
        float_reference: samples and what the float model makes of them, to compare the file with.
        original: the model that the user handed over; compared with at other sizes, where ``float_reference`` was made
            of it.
        decisions: what the model's Python decided by sizes while it was traced.
        judge: called with the file's quality before the file takes its place; it may raise.
        float_dtype: of all that is not quantized; None for the model's.
        keep_io_types: with ``float_dtype``, inputs and outputs stay float32.
        external_data_threshold: weights of more bytes than this go to ``<file>.data``; protobuf ends at 2 GB.
    """

    dynamic_batch: bool | None = None
    dynamic_shapes: Shapes | None = None
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    opset: int | None = None
    check: bool = True
    rules: FileRules = _ANY_FILE
    metadata: Mapping[str, str] = field(default_factory=dict)
    external_data_threshold: int = 1_900_000_000
    float_reference: FloatReference | None = None
    original: Original | None = None
    decisions: SizeDecisions | None = None
    judge: Callable[[Quality], None] | None = None
    float_dtype: torch.dtype | None = None
    keep_io_types: bool = False

    def open_shapes(self, parameters: Sequence[str], inputs: tuple[Any, ...]) -> OpenShapes:
        """Return which dimensions of ``inputs`` stay open; raises as ``fxq.export.dynamic_shapes.open_shapes``."""
        is_left = self.dynamic_batch is None and self.dynamic_shapes is None
        batch = self.rules.dynamic_batch if is_left else self.dynamic_batch
        return open_shapes(self.dynamic_shapes, batch, parameters, inputs)


@dataclass(frozen=True)
class OtherSizes:
    """A run at other sizes than those of the example inputs: the sizes by name, and how far the outputs are apart."""

    sizes: Mapping[str, int]
    parity: tuple[OutputParity, ...]

    def __str__(self) -> str:
        return ", ".join(f"{name} {size}" for name, size in self.sizes.items())


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far ONNX Runtime is from the converted model.

    Args:
        parity: of each output, with the operators as the file has them.
        optimized_parity: with ONNX Runtime's default optimizations, as it is used.
        other_sizes: optimized too, at other sizes of each open dimension, alone and then all together.
        shapes: of each input, sizes and names of sizes.
        conditions: for which sizes the model was traced, where some are open: its Python decides by them.
        dynamic_nodes: how many operators quantize on the fly.
        quality: of the file in ONNX Runtime, optimized, against the float model; None where nothing was kept to compare
            on, or it does not fit the file's sizes.
        fusion: why an output of the file is worse in ONNX Runtime than the converted model's by more than 0.3 dB: which
            optimization it is, what it makes, and how to leave it out, or that none is; "" where no output is.
        coverage: which layers compute with integers.
        float_dtype: of the file's float side, where it was to be another than the model's; ``optimized_parity`` is then
            empty, and ``other_sizes`` are of the file before.
        in_float32: why a node stays in float32 then, by its name.
        float32_quality: ``quality`` of the file before.
        islands: what was written for each island, by its path in the model; ``path`` is then their folder.
        whole: with islands, the file of the whole, where there is one.
        notes: with islands, why there is none.
    """

    path: Path
    opset: int
    size_bytes: int
    quantize_nodes: int
    dequantize_nodes: int
    dynamic_batch: bool
    parity: tuple[OutputParity, ...] = ()
    external_data: Path | None = None
    dynamic_nodes: int = 0
    optimized_parity: tuple[OutputParity, ...] = ()
    other_sizes: tuple[OtherSizes, ...] = ()
    shapes: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    conditions: tuple[str, ...] = ()
    quality: Quality | None = None
    fusion: str = ""
    coverage: Coverage = Coverage()  # noqa: RUF009 - frozen
    islands: "Mapping[str, ExportReport]" = field(default_factory=dict)
    whole: "ExportReport | None" = None
    notes: tuple[str, ...] = ()
    float_dtype: str = ""
    in_float32: Mapping[str, str] = field(default_factory=dict)
    float32_quality: Quality | None = None

    @property
    def other_batch_parity(self) -> tuple[OutputParity, ...]:
        """With one sample, or two where the example inputs are one; empty where the batch is static."""
        return next((run.parity for run in self.other_sizes if set(run.sizes) == {BATCH}), ())

    def __str__(self) -> str:
        if self.islands:
            files = [str(report) for report in (*self.islands.values(), self.whole) if report is not None]
            return "\n".join([*files, f"{self.path}: {self.coverage}", *self.notes])
        batch = "dynamic" if self.dynamic_batch else "static"
        lines = [
            f"{self.path}: {self.size_bytes / 1e6:.2f} MB, opset {self.opset}, {batch} batch, "
            f"{self.quantize_nodes} QuantizeLinear, {self.dequantize_nodes} DequantizeLinear"
            + (f", {self.dynamic_nodes} quantized on the fly" if self.dynamic_nodes else "")
        ]
        if self.float_dtype:
            lines.append(f"  float side in {self.float_dtype}, but for {len(self.in_float32)} nodes in float32")
            lines += [f"    {name}: {reason}" for name, reason in self.in_float32.items()]
        opened = [name for name, shape in self.shapes.items() if any(isinstance(size, str) for size in shape)]
        lines += [f"  {name}: {', '.join(map(str, self.shapes[name]))}" for name in opened]
        if self.conditions:
            lines.append(
                f"  traced for sizes with {', '.join(self.conditions)}: for others it may compute something else"
            )
        runs = {
            "onnxruntime": self.parity,
            "optimized": self.optimized_parity,
            **{f"optimized, {run}": run.parity for run in self.other_sizes},
        }
        lines += [
            f"  {p.name}: max {p.max_lsb:.2f} LSB, mean {p.mean_lsb:.3f} LSB, {p.beyond:.2%} beyond 1 LSB, "
            f"max abs {p.max_abs:.3g} ({run})"
            for run, parity in runs.items()
            for p in parity
        ]
        lines += [
            f"  1 LSB of {p.name} is {p.step:.3g}; {MAX_LSB:g} at most, {MAX_MEAN_LSB:g} on average and, in the file "
            f"as it is written, {MAX_BEYOND:.2%} beyond 1 count as rounding"
            for p in self.parity
        ]
        if self.coverage.total:
            lines.append(f"  {self.coverage}")
        if self.quality is not None:
            lines += [f"  {one.name}: {one}, {self.quality.evidence}" for one in self.quality.outputs]
        if self.fusion:
            lines.append(f"  {self.fusion}")
        return "\n".join(lines)
