"""Rules about quantizers in front of an activation, and inside one, that would fuse into the layer or add before it."""

from collections.abc import Iterator

import onnx_ir as ir

from fxq.kinds import ACTIVATIONS
from fxq.verification.case import Case, name_of
from fxq.verification.finding import WARNING, Finding
from fxq.verification.formulas import Formula, without_pairs

# One kernel applies the scales of a convolution or product, any activation and the quantizer behind that: measured with
# TensorRT-RTX 1.7 and OpenVINO 2026.4. Planning counts on fewer, target.fused_activations.
_FUSING_ALL_ACTIVATIONS = ("tensorrt_rtx", "openvino")


def quantizers_before_activations(case: Case) -> Iterator[Finding]:
    """A quantizer between an operation and the activation or batch norm that would fuse into it."""
    # The others have both roundings in the one kernel.
    is_fused = case.target.file.runtime in _FUSING_ALL_ACTIVATIONS
    own_kernel = "" if is_fused else "what is behind it takes a kernel of its own, and "
    for node in case.nodes:
        behind = split_off(case, node)
        if behind is None:
            continue
        source = None if node.inputs[0] is None else node.inputs[0].producer()
        layer, fused = name_of(source), name_of(behind)
        what, fix, cost = "activation", f"move the pair behind {fused!r}", "codes are spent on values that it flattens"
        if case.ask.kind(behind) == "batch_norm":
            what, cost = "batch norm", "what it scales was rounded before"
            fix = f"fold {fused!r} into {layer!r} before the model is quantized"
        yield case.finding(
            "quantizer-before-activation", node, WARNING, fix,
            what=f"stands between {layer!r} and its {what}, {fused!r}", cost=f"{own_kernel}{cost}",
        )  # fmt: skip


def quantizers_in_activations(case: Case) -> Iterator[Finding]:
    """Quantizers between the nodes of an activation that is written as several: x * sigmoid(x)."""
    # TensorRT-RTX has all of it in the one kernel.
    is_fused = case.target.file.runtime == "tensorrt_rtx"
    own_kernel = "" if is_fused else "the runtime no longer knows it, and computes it in kernels of its own; "
    for formula, inside in _told_formulas(case):
        source = formula.source.producer()
        more = f" as one of {len(inside)}" if len(inside) > 1 else ""
        yield case.finding(
            "quantizer-in-activation", inside[0], WARNING,
            f"quantize nothing between {name_of(source)!r} and {name_of(formula.last)!r}, and what the latter gives",
            what=f"stands{more} inside the activation {formula.kind}, which is written as {len(formula.nodes)} nodes "
            f"up to {name_of(formula.last)!r}",
            cost=f"{own_kernel}what is rounded inside is stored nowhere",
        )  # fmt: skip


def in_activations(case: Case) -> set[ir.Node]:
    """Return the quantizers that are told of as inside an activation."""
    return {quantize for _, inside in _told_formulas(case) for quantize in inside}


def split_off(case: Case, quantize: ir.Node) -> ir.Node | None:
    """Return what a quantizer keeps from fusing into the layer or add before it, None where that is nothing."""
    value = quantize.inputs[0] if quantize.op_type == "QuantizeLinear" else None
    source = None if value is None else value.producer()
    if source is None:
        return None
    fused = _fused(case, source)
    pairs = [reader for reader in case.ask.readers(quantize.outputs[0]) if reader.op_type == "DequantizeLinear"]
    behind = {reader for dequantize in pairs for reader in case.ask.operations_behind(dequantize.outputs[0])}
    is_fused = len(behind) == 1 and all(case.ask.kind(one) in fused and one.graph is quantize.graph for one in behind)
    return behind.pop() if is_fused and not behind & case.ask.in_rounded_formulas else None


def _told_formulas(case: Case) -> Iterator[tuple[Formula, list[ir.Node]]]:
    """Yield each activation that would fuse and has quantizers inside, and these."""
    for formula in case.ask.rounded_formulas.values():
        source = formula.source.producer()
        if source is not None and formula.kind in _fused(case, source) and (inside := _quantizers(case, formula)):
            yield formula, inside


def _fused(case: Case, source: ir.Node) -> frozenset[str]:
    """Return the kinds of what fuses into a layer or add."""
    fused = case.target.fused_activations
    if case.ask.is_integer_layer(source):
        is_any = case.target.file.runtime in _FUSING_ALL_ACTIVATIONS
        return fused | (ACTIVATIONS if is_any else frozenset()) | {"batch_norm"}
    return fused if case.ask.kind(source) == "add" else frozenset()


def _quantizers(case: Case, formula: Formula) -> list[ir.Node]:
    """Return what rounds the source of a formula, or what is computed in it."""
    inner = {formula.source, *(value for node in formula.nodes[:-1] for value in node.outputs)}
    return [
        node
        for node in case.nodes
        if node.op_type == "QuantizeLinear"
        and node.inputs[0] is not None
        and without_pairs(node.inputs[0]) in inner
        and any(reader in formula.nodes for reader in case.ask.computing_readers(node.outputs[0]))
    ]
