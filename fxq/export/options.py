"""What a caller may choose about an export, what a target demands of the file, and what an export reports back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fxq.compare.parity import OutputParity


@dataclass(frozen=True)
class ExportRules:
    """What a runtime demands of a QDQ file; a target holds one. The defaults demand only what ONNX does.

    Args:
        zero_point_must_be_zero: symmetric quantization only (TensorRT).
        quantized_outputs_allowed: a graph output may come from a quantizer.
        fast_weight_only: write the weight of an operator that computes in float as ONNX Runtime runs it fastest, not
            as DequantizeLinear of the tensor as PyTorch stores it; see stored_weights.py.
        activation_dtypes: code dtypes of QuantizeLinear, as ONNX writes them in lower case.
        weight_dtypes: code dtypes of stored tensors; int32, the dtype of a bias, is always allowed.
        weight_axes: for each operator, the axis of its per-channel weight. A linear weight is counted as PyTorch
            stores it, (out, in): Gemm with transB = 1, or MatMul behind a Transpose; stored as (in, out), the other
            axis is meant.
        minimum_opset: the lowest opset to write, where the runtime wants more than the dtypes do.
        dynamic_batch: write dimension 0 of the inputs as dynamic unless the caller says otherwise.
    """

    zero_point_must_be_zero: bool = False
    quantized_outputs_allowed: bool = True
    fast_weight_only: bool = False
    activation_dtypes: tuple[str, ...] = ("int8", "uint8", "int16", "uint16", "float8e4m3fn")
    weight_dtypes: tuple[str, ...] = ("int4", "int8", "uint8", "int16", "uint16", "float8e4m3fn")
    weight_axes: tuple[tuple[str, int], ...] = (("Conv", 0), ("ConvTranspose", 1), ("Gemm", 0), ("MatMul", 0))
    minimum_opset: int = 18
    dynamic_batch: bool = True


@dataclass(frozen=True)
class ExportOptions:
    """How to write the file.

    Args:
        dynamic_batch: dimension 0 of every input is dynamic; None leaves it to ``rules``.
        check: check the file, and compare it with the model in ONNX Runtime, before it takes its place.
        rules: what the runtime demands.
        metadata: text to store in the file (``metadata_props``).
        external_data_threshold: weights of more bytes than this go to ``<file>.data``; protobuf ends at 2 GB.
    """

    dynamic_batch: bool | None = None
    check: bool = True
    rules: ExportRules = ExportRules()
    metadata: Mapping[str, str] = field(default_factory=dict)
    external_data_threshold: int = 1_900_000_000

    @property
    def batch_is_dynamic(self) -> bool:
        """Whether dimension 0 is written as dynamic."""
        return self.rules.dynamic_batch if self.dynamic_batch is None else self.dynamic_batch


@dataclass(frozen=True)
class ExportReport:
    """What was written; ``dynamic_nodes`` counts the operators that quantize on the fly."""

    path: Path
    opset: int
    size_bytes: int
    quantize_nodes: int
    dequantize_nodes: int
    dynamic_batch: bool
    parity: tuple[OutputParity, ...]
    external_data: Path | None = None
    dynamic_nodes: int = 0

    def __str__(self) -> str:
        batch = "dynamic" if self.dynamic_batch else "static"
        lines = [
            f"{self.path}: {self.size_bytes / 1e6:.2f} MB, opset {self.opset}, {batch} batch, "
            f"{self.quantize_nodes} QuantizeLinear, {self.dequantize_nodes} DequantizeLinear"
            + (f", {self.dynamic_nodes} quantized on the fly" if self.dynamic_nodes else "")
        ]
        lines += [
            f"  {p.name}: max {p.max_lsb:.2f} LSB, mean {p.mean_lsb:.3f} LSB, max abs {p.max_abs:.3g} (onnxruntime)"
            for p in self.parity
        ]
        return "\n".join(lines)
