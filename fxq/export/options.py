"""What a caller may choose about an export, and what an export reports back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fxq.compare.parity import MAX_LSB, MAX_MEAN_LSB, OutputParity
from fxq.compare.quality import Quality
from fxq.coverage import Coverage
from fxq.float_reference import FloatReference
from fxq.targets import FileRules

_ANY_FILE = FileRules()


@dataclass(frozen=True)
class ExportOptions:
    """How to write the file.

    Args:
        dynamic_batch: dimension 0 of every input is dynamic; None leaves it to ``rules``.
        check: check the file, and compare it with the model in ONNX Runtime, before it takes its place: as it is
            written, with the default optimizations, and with these at another batch size where that is dynamic.
        rules: what the runtime demands.
        metadata: text to store in the file (``metadata_props``).
        float_reference: samples and what the float model makes of them, to compare the file with.
        judge: called with the file's quality before the file takes its place; it may raise.
        external_data_threshold: weights of more bytes than this go to ``<file>.data``; protobuf ends at 2 GB.
    """

    dynamic_batch: bool | None = None
    check: bool = True
    rules: FileRules = _ANY_FILE
    metadata: Mapping[str, str] = field(default_factory=dict)
    external_data_threshold: int = 1_900_000_000
    float_reference: FloatReference | None = None
    judge: Callable[[Quality], None] | None = None

    @property
    def batch_is_dynamic(self) -> bool:
        """Whether dimension 0 is written as dynamic."""
        return self.rules.dynamic_batch if self.dynamic_batch is None else self.dynamic_batch


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far ONNX Runtime is from the converted model.

    Args:
        parity: of each output, with the operators as the file has them.
        optimized_parity: with ONNX Runtime's default optimizations, as it is used.
        other_batch_parity: optimized too, with one sample, or two where the example inputs are one; empty where the
            batch is static.
        dynamic_nodes: how many operators quantize on the fly.
        quality: of the file in ONNX Runtime, optimized, against the float model; None where nothing was kept to compare
            on, or it does not fit the file's sizes.
        coverage: which layers compute with integers.
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
    other_batch_parity: tuple[OutputParity, ...] = ()
    quality: Quality | None = None
    coverage: Coverage = Coverage()  # noqa: RUF009 - frozen

    def __str__(self) -> str:
        batch = "dynamic" if self.dynamic_batch else "static"
        lines = [
            f"{self.path}: {self.size_bytes / 1e6:.2f} MB, opset {self.opset}, {batch} batch, "
            f"{self.quantize_nodes} QuantizeLinear, {self.dequantize_nodes} DequantizeLinear"
            + (f", {self.dynamic_nodes} quantized on the fly" if self.dynamic_nodes else "")
        ]
        runs = {
            "onnxruntime": self.parity,
            "optimized": self.optimized_parity,
            "optimized, another batch size": self.other_batch_parity,
        }
        lines += [
            f"  {p.name}: max {p.max_lsb:.2f} LSB, mean {p.mean_lsb:.3f} LSB, max abs {p.max_abs:.3g} ({run})"
            for run, parity in runs.items()
            for p in parity
        ]
        lines += [
            f"  1 LSB of {p.name} is {p.step:.3g}; {MAX_LSB:g} at most, {MAX_MEAN_LSB:g} on average count as rounding"
            for p in self.parity
        ]
        if self.coverage.total:
            lines.append(f"  {self.coverage}")
        if self.quality is not None:
            on = f"against {self.quality.against} on {self.quality.samples} samples"
            lines += [f"  {one.name}: {one}, {on}" for one in self.quality.outputs]
        return "\n".join(lines)
