"""Rules about places: where a quantizer is missing, and where one keeps the runtime from fusing.

Source: ``fxq/targets/builtin.py``, whose rows say what each runtime computes in integers; TensorRT developer guide,
"Q/DQ Placement Recommendations".
"""

from collections.abc import Iterator

import onnx_ir as ir

from fxq.verification.activation_rules import in_activations, split_off
from fxq.verification.case import Case, name_of
from fxq.verification.finding import NOTE, WARNING, Finding

_ABSORBED = "absorbed_by_conv"
_ELEMENTWISE = frozenset({"add", "mul", "cat"})
# All runtimes have integer kernels of these, or copy codes.
_POOLS = frozenset({"max_pool", "avg_pool", "global_avg_pool", "mean", "resize"})


def residual_adds(case: Case) -> Iterator[Finding]:
    """An add that a convolution absorbs: its other input is quantized, the convolution's own is not."""
    if not case.target.quantizes_inputs("add", _ABSORBED):
        return
    for node in case.nodes:
        if case.ask.kind(node) != "add" or len(case.ask.activations(node)) != 2 or _broadcasts(node):
            continue
        sides = [value for value in node.inputs if value is not None]
        if sides[0] is sides[1]:
            continue
        quantized = [case.ask.is_quantized(side) for side in sides]
        convolutions = [case.ask.convolution_of(side) for side in sides]
        stored = [case.ask.convolution_of(side, through_quantizers=True) for side in sides]
        if any(convolutions) and not any(quantized):
            first = convolutions[0] or convolutions[1]
            residual = sides[1] if convolutions[0] is not None else sides[0]
            yield case.finding(
                "residual-quantizer", node, WARNING,
                f"put a QuantizeLinear and a DequantizeLinear on its other input, {residual.name!r}, and none on the "
                "convolution's side",
                what=f"is absorbed by the convolution {name_of(first)!r}, and its other input, the residual, is float",
                cost="the fused kernel reads and writes float instead of int8: four times the memory traffic of the "
                "whole skip connection",
            )  # fmt: skip
        elif all(quantized) and any(stored):
            at = 0 if stored[0] is not None else 1
            yield case.finding(
                "quantizer-before-add", node, WARNING,
                f"remove the pair between {name_of(stored[at])!r} and the add, and keep the one on the residual",
                what=f"reads the output of the convolution {name_of(stored[at])!r} through a quantizer",
                cost="the convolution cannot absorb the add: one kernel more, and a rounding that nothing needs",
            )  # fmt: skip


def lone_quantizers(case: Case) -> Iterator[Finding]:
    """A pair with which nothing computes in integers: neither what reads it nor what writes it."""
    told = in_activations(case)
    for node in case.nodes:
        if node.op_type != "QuantizeLinear" or node.inputs[0] in case.ask.constants:
            continue
        readers = case.ask.computing_readers(node.outputs[0])
        if not readers or any(_is_helped(case, reader) for reader in readers) or _is_output_of_row(case, node):
            continue
        if case.ask.is_quantized(node.inputs[0]) or split_off(case, node) is not None or node in told:
            continue  # it only carries on what was rounded already, or another rule says it
        names = ", ".join(sorted({f"{reader.op_type} {name_of(reader)!r}" for reader in readers})[:3])
        yield case.finding(
            "lone-quantizer", node, WARNING, "remove the pair",
            what=f"is read by nothing that {case.target.name} computes in integers: {names}",
            cost="two conversions and a rounding for nothing",
        )  # fmt: skip


def mixed_operands(case: Case) -> Iterator[Finding]:
    """An operation with several activations: all are quantized, or none."""
    for node in case.nodes:
        kind = case.ask.kind(node)
        operands = case.ask.activations(node)
        if kind not in (*_ELEMENTWISE, "matmul") or len(operands) < 2 or not case.wants_integers(kind):
            continue
        quantized = [case.ask.is_quantized(operand) or _is_absorbing(case, kind, operand) for operand in operands]
        if any(map(case.ask.is_quantized, operands)) and not all(quantized):
            missing = [repr(operand.name) for operand, is_one in zip(operands, quantized, strict=True) if not is_one]
            yield case.finding(
                "mixed-operands", node, WARNING,
                f"quantize {', '.join(missing)} too, or none of its operands",
                what=f"reads integers and float; in float: {', '.join(missing)}",
                cost="it runs in float, and the quantized operands are converted back for it",
            )  # fmt: skip


def _is_absorbing(case: Case, kind: str, operand: ir.Value) -> bool:
    """Return whether an integer convolution writes an operand of an add, which it then computes itself."""
    producer = operand.producer()
    if kind != "add" or producer is None or case.target.quantizes_output("conv"):
        return False
    is_read_once = case.ask.only_reader(operand) is not None
    return is_read_once and case.ask.kind(producer) == "conv" and case.ask.is_integer_layer(producer)


def equal_ranges(case: Case) -> Iterator[Finding]:
    """Tensors that no kernel rescales between: operands of a concatenation, both sides of what moves data."""
    for node in case.nodes:
        kind = case.ask.kind(node)
        slots = case.target.same(kind)
        if not slots:
            continue
        found = [case.ask.dequantizer(value) for value in case.ask.activations(node)] if "inputs" in slots else []
        if "output" in slots:
            found += [reader for reader in case.ask.readers(node.outputs[0]) if reader.op_type == "QuantizeLinear"]
        quantizers = [one for one in found if one is not None]
        if len(quantizers) == len(found) and any(not case.ask.same_range(quantizers[0], one) for one in quantizers[1:]):
            yield case.finding(
                "equal-ranges", node, WARNING if kind == "cat" else NOTE,
                "give all of them the largest range",
                what="moves codes between quantizers of different ranges",
                cost="each tensor is rescaled, in a kernel of its own where none before it takes that in",
            )  # fmt: skip


def repeated_quantizers(case: Case) -> Iterator[Finding]:
    """One tensor, quantized more than once: each of its readers wants the same codes."""
    for value in dict.fromkeys(node.inputs[0] for node in case.nodes if node.op_type == "QuantizeLinear"):
        quantizers = [] if value is None else [
            reader for reader in case.ask.readers(value) if reader.op_type == "QuantizeLinear"
        ]  # fmt: skip
        if any(not case.ask.same_range(quantizers[0], one) for one in quantizers[1:]):
            names = ", ".join(repr(name_of(one)) for one in quantizers)
            yield case.finding(
                "repeated-quantizer", quantizers[1], NOTE, "let one pair serve all readers",
                what=f"quantizes a tensor that has other codes as well: {names}",
                cost="the tensor is stored once for each of them",
            )  # fmt: skip


def _broadcasts(node: ir.Node) -> bool:
    shapes = [None if value is None or value.shape is None else tuple(value.shape)[1:] for value in node.inputs]
    return None not in shapes and shapes[0] != shapes[1]


def _is_helped(case: Case, reader: ir.Node) -> bool:
    """Does an operation compute in integers, or copy codes, if it reads quantized values?"""
    kind, target = case.ask.kind(reader), case.target
    if reader.op_type == "QuantizeLinear" or kind in _POOLS:
        return True
    if kind in _ELEMENTWISE:
        return all(case.ask.is_quantized(value) for value in case.ask.activations(reader)) or kind == "add"
    if any(row.inputs is not False for row in target.rules_for(kind)) or kind == "other":
        return True
    # As softmax in ONNX Runtime: integers where both sides are, with a quantizer behind it alone where not.
    behind = case.ask.readers(reader.outputs[0])
    return target.quantizes_output(kind) and any(one.op_type == "QuantizeLinear" for one in behind)


def _is_output_of_row(case: Case, quantize: ir.Node) -> bool:
    """Is it the output of an operation that gives integers whatever reads them, activations between them apart?

    Rows with a condition want readers that compute in integers.
    """
    value = quantize.inputs[0]
    while value is not None and (node := value.producer()) is not None:
        kind = case.ask.kind(node)
        if case.target.quantizes_output(kind):
            return True
        if kind not in case.target.fused_activations:
            return False
        value = node.inputs[0]
    return False
