"""Target: what a runtime fuses and expects, as data. Passes read it; none asks for a runtime by name."""

from dataclasses import dataclass

from fxq.errors import TargetError
from fxq.quant.descriptor import QuantDescriptor


@dataclass(frozen=True)
class Target:
    """Placement and format rules of one runtime. Kinds are the words of :mod:`fxq.graph.kinds`.

    Args:
        name: what a recipe calls it.
        activation: default descriptor; one with calibrator="dynamic" stands for a runtime that measures each tensor as
            it comes. None: activations stay in float, only weights are integers.
        weight: default descriptor.
        activation_bits, weight_bits: widths that the runtime can express.
        quantize_inputs: kinds all of whose tensor inputs are quantized.
        swapped_kinds: kinds whose weights are quantized. One that is not in ``quantize_inputs`` is computed in float
            from integer weights. "matmul" stands for a product with a stored matrix, which is a linear layer.
        on_request: kinds whose inputs are quantized only where a rule asks for it: by default it would cost speed or
            accuracy.
        symmetric_only: zero points must be 0.
        float8: float8 e4m3 is a format like any integer one.
        packed_bits: widths of weights that are written without padding to 8 bits.
        block_sizes: how many inputs of a weight may share a range, for weights of ``packed_bits``.
        block_kinds: kinds whose weights may have blocks.
        conv_transpose_axis: dimension of a transposed convolution's weight that keeps its own range (0 elsewhere).
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
        reasons: (kind, why it is computed in float), for people who ask ``explain``.
    """

    name: str
    activation: QuantDescriptor | None
    weight: QuantDescriptor
    activation_bits: frozenset[int]
    weight_bits: frozenset[int]
    quantize_inputs: frozenset[str]
    swapped_kinds: frozenset[str] = frozenset({"conv", "conv_transpose", "linear"})
    on_request: frozenset[str] = frozenset()
    symmetric_only: bool = True
    float8: bool = False
    packed_bits: frozenset[int] = frozenset()
    block_sizes: frozenset[int] = frozenset()
    block_kinds: frozenset[str] = frozenset({"linear"})
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
    reasons: tuple[tuple[str, str], ...] = ()

    def quantizes_inputs(self, kind: str) -> bool:
        """Return whether inputs of ``kind`` are quantized, by default or where a rule asks for it."""
        return kind in self.quantize_inputs or kind in self.on_request

    @property
    def is_dynamic(self) -> bool:
        """Are activations quantized with the range that they have at run time?"""
        return self.activation is not None and self.activation.is_dynamic

    @property
    def needs_data(self) -> bool:
        """Are there ranges of activations to be calibrated?"""
        return self.activation is not None and not self.is_dynamic

    def reason(self, kind: str) -> str | None:
        """Return why this runtime computes ``kind`` in float, None where nothing special is known."""
        return dict(self.reasons).get(kind)

    def check_activation(self, descriptor: QuantDescriptor, where: str) -> None:
        """Raise a TargetError if activations at ``where`` (a path and what asked for it) cannot have ``descriptor``."""
        if self.activation is None:
            raise TargetError(
                f"{where}: target {self.name!r} leaves activations in float; drop the activation descriptor, or take "
                "a target that has integer activations"
            )
        self._check_format(descriptor, where, "activations", self.activation_bits)
        self.check_activation_axis(descriptor, where)
        if descriptor.is_dynamic and not self.is_dynamic:
            raise TargetError(
                f"{where}: target {self.name!r} needs ranges that are known before it runs; use another calibrator "
                'than "dynamic", or the recipe "dynamic"'
            )
        if self.is_dynamic and not descriptor.is_dynamic:
            raise TargetError(
                f"{where}: target {self.name!r} measures each activation as it runs; use "
                f'calibrator="dynamic", got {descriptor.calibrator!r}'
            )
        if self.symmetric_only and (descriptor.unsigned or not descriptor.symmetric):
            raise TargetError(
                f"{where}: target {self.name!r} takes signed symmetric activations only (zero point 0, int8); "
                "use unsigned=False and symmetric=True"
            )
        if self.is_dynamic and (descriptor.symmetric or not descriptor.unsigned):
            # ONNX DynamicQuantizeLinear has no other form.
            raise TargetError(
                f"{where}: target {self.name!r} takes unsigned affine activations only; use unsigned=True and "
                "symmetric=False"
            )

    def check_activation_axis(self, descriptor: QuantDescriptor, where: str) -> None:
        """Raise a TargetError if ``descriptor`` has several ranges for one activation, which no runtime takes."""
        if descriptor.axis is not None:
            raise TargetError(
                f"{where}: target {self.name!r} quantizes activations per tensor; use axis=None, got {descriptor.axis}"
            )

    def check_weight(self, descriptor: QuantDescriptor, where: str, kind: str = "linear") -> None:
        """Raise a TargetError if weights of an operation of ``kind`` at ``where`` cannot have ``descriptor``."""
        self._check_format(descriptor, where, "weights", self.weight_bits)
        if descriptor.unsigned or not descriptor.symmetric:
            raise TargetError(
                f"{where}: target {self.name!r} takes signed symmetric weights only; "
                "use unsigned=False and symmetric=True"
            )
        if descriptor.is_dynamic:
            raise TargetError(f'{where}: a weight is known and has nothing dynamic; drop calibrator="dynamic"')
        if descriptor.block_size is not None:
            self._check_blocks(descriptor, where, kind)

    def _check_format(self, descriptor: QuantDescriptor, where: str, what: str, widths: frozenset[int]) -> None:
        if isinstance(descriptor.num_bits, tuple):
            if not self.float8:
                raise TargetError(
                    f"{where}: target {self.name!r} has no float8 {what}; use num_bits={_listing(widths)}"
                )
        elif descriptor.num_bits not in widths:
            raise TargetError(
                f"{where}: target {self.name!r} has no {descriptor.num_bits}-bit {what}; "
                f"use num_bits={_listing(widths)} or leave the module in float (a rule with None)"
            )

    def _check_blocks(self, descriptor: QuantDescriptor, where: str, kind: str) -> None:
        if not self.block_sizes:
            raise TargetError(
                f"{where}: target {self.name!r} has no weights in blocks; use axis=0 without block_size, or the recipe "
                '"weight_only"'
            )
        if kind not in self.block_kinds:
            raise TargetError(
                f"{where}: only {_listing(self.block_kinds)} weights have blocks, and this is a {kind}; give it a rule "
                "whose descriptor has no block_size"
            )
        if descriptor.block_size not in self.block_sizes:
            raise TargetError(
                f"{where}: target {self.name!r} has no blocks of {descriptor.block_size}; use "
                f"block_size={_listing(self.block_sizes)}"
            )
        if descriptor.num_bits not in self.packed_bits:
            raise TargetError(
                f"{where}: target {self.name!r} has no blocks of {descriptor.num_bits}-bit weights; use "
                f"num_bits={_listing(self.packed_bits)}, or drop block_size"
            )


def _listing(items: frozenset[int] | frozenset[str]) -> str:
    return " or ".join(str(item) for item in sorted(items))
