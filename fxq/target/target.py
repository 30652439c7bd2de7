"""Target: what a runtime fuses and expects, as data. Passes read it; none asks for a runtime by name."""

from dataclasses import dataclass

from fxq.errors import TargetError
from fxq.quant.descriptor import QuantDescriptor


@dataclass(frozen=True)
class Target:
    """Placement and format rules of one runtime. Kinds are the words of :mod:`fxq.graph.kinds`.

    Args:
        name: what a recipe calls it.
        activation, weight: default descriptors.
        activation_bits, weight_bits: widths that the runtime can express.
        symmetric_only: zero points must be 0.
        conv_transpose_axis: dimension of a transposed convolution's weight that keeps its own range (0 elsewhere).
        quantize_inputs: kinds all of whose tensor inputs are quantized.
        quantize_outputs: kinds whose output is quantized, behind the activations that fuse.
        fused_activations: kinds that run in the epilogue of the operation before them.
        quantize_if_surrounded: kinds quantized only if every reader takes quantized input.
        quantize_after_conv: kinds that get a quantizer on an input that a convolution computes.
        float_readers: kinds that read in float at full precision: an elementwise operation or concatenation that one of
            them reads, directly or through others of its kind, stays in float with them.
        residual_adds: an add absorbed by a convolution needs its other input quantized.
        share_scale: kinds whose tensor inputs share one range.
        keep_scale: kinds that only move data, whose output keeps the range of their input.
        quantize_graph_outputs: a quantizer on a tensor that the model returns is fine.
        integer_bias: biases are written as int32 in steps of input step x weight step.
        opset: lowest ONNX opset to write.
        dynamic_batch: exported files leave the batch size open unless the caller says otherwise.
    """

    name: str
    activation: QuantDescriptor
    weight: QuantDescriptor
    activation_bits: frozenset[int]
    weight_bits: frozenset[int]
    quantize_inputs: frozenset[str]
    symmetric_only: bool = True
    conv_transpose_axis: int = 1
    quantize_outputs: frozenset[str] = frozenset()
    fused_activations: frozenset[str] = frozenset()
    quantize_if_surrounded: frozenset[str] = frozenset()
    quantize_after_conv: frozenset[str] = frozenset()
    float_readers: frozenset[str] = frozenset()
    residual_adds: bool = False
    share_scale: frozenset[str] = frozenset()
    keep_scale: frozenset[str] = frozenset()
    quantize_graph_outputs: bool = False
    integer_bias: bool = False
    opset: int = 18
    dynamic_batch: bool = True

    def check_activation(self, descriptor: QuantDescriptor, where: str) -> None:
        """Raise a TargetError if activations at ``where`` (a path and what asked for it) cannot have ``descriptor``."""
        if descriptor.num_bits not in self.activation_bits:
            raise TargetError(
                f"{where}: target {self.name!r} has no {descriptor.num_bits}-bit activations; "
                f"use num_bits={_listing(self.activation_bits)} or leave the module in float (a rule with None)"
            )
        if descriptor.axis is not None:
            raise TargetError(
                f"{where}: target {self.name!r} quantizes activations per tensor; use axis=None, got {descriptor.axis}"
            )
        if self.symmetric_only and (descriptor.unsigned or not descriptor.symmetric):
            raise TargetError(
                f"{where}: target {self.name!r} takes signed symmetric activations only (zero point 0, int8); "
                "use unsigned=False and symmetric=True"
            )

    def check_weight(self, descriptor: QuantDescriptor, where: str) -> None:
        """Raise a TargetError if weights at ``where`` cannot have ``descriptor``."""
        if descriptor.num_bits not in self.weight_bits:
            raise TargetError(
                f"{where}: target {self.name!r} has no {descriptor.num_bits}-bit weights; "
                f"use num_bits={_listing(self.weight_bits)} or leave the module in float (a rule with None)"
            )
        if descriptor.unsigned or not descriptor.symmetric:
            raise TargetError(
                f"{where}: target {self.name!r} takes signed symmetric weights only; "
                "use unsigned=False and symmetric=True"
            )


def _listing(bits: frozenset[int]) -> str:
    return " or ".join(str(width) for width in sorted(bits))
