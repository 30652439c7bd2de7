"""Rules about layers: input, weight, bias and output agree, or the layer runs in float.

Source: TensorRT developer guide, "Q/DQ Placement Recommendations"; ONNX Runtime's QDQ selectors
(onnxruntime/core/optimizer/qdq_transformer/selectors_actions).
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from fxq.export.qdq_rules import codes_dtype, constant_of
from fxq.verification.case import Case
from fxq.verification.finding import ERROR, NOTE, WARNING, Finding

_IN_FLOAT = "the layer runs in float, and its quantizers cost time and accuracy for nothing"


def half_quantized_layers(case: Case) -> Iterator[Finding]:
    """Integer input and float weight, or the reverse."""
    for node, data, weight in case.ask.layers():
        kind = case.ask.kind(node)
        has_input, has_weight = case.ask.is_quantized(data), case.ask.is_quantized(weight)
        if has_input and not has_weight and _have_another_reason(case, node, data):
            yield case.finding(
                "float-layer", node, NOTE, "quantize its weight too, unless accuracy wants it in float",
                what="reads codes that are there for other operations, and its weight is given in float",
                cost="it runs in float",
            )  # fmt: skip
        elif has_input and not has_weight:
            yield case.finding(
                "half-quantized", node, WARNING,
                "store its weight as integer codes with a DequantizeLinear, a scale for each output channel",
                what="reads quantized input, and its weight is given in float", cost=_IN_FLOAT,
            )  # fmt: skip
        elif has_weight and not has_input and case.wants_integers(kind):
            yield case.finding(
                "half-quantized", node, WARNING, "quantize its input too, or leave its weight in float",
                what="has integer weights and reads float",
                cost="it computes in float: the file is smaller, and not faster",
            )  # fmt: skip


def _have_another_reason(case: Case, node: ir.Node, data: ir.Value) -> bool:
    """Return whether codes are there without ``node``: a kernel can write nothing else, or another layer reads them."""
    maker, found = case.ask.computed_by(data), case.ask.dequantizer(data)
    while maker is not None and case.ask.kind(maker) in case.target.fused_activations:
        maker = case.ask.computed_by(maker.inputs[0])
    if maker is not None and case.target.quantizes_output(case.ask.kind(maker)):
        return True
    readers = [] if found is None or found.inputs[0] is None else case.ask.computing_readers(found.inputs[0])
    return any(reader is not node and case.ask.is_integer_layer(reader) for reader in readers)


def float_layers(case: Case) -> Iterator[Finding]:
    """Layers that the target would run in integers, left in float: perhaps on purpose."""
    for node, data, weight in case.ask.layers():
        is_float = not case.ask.is_quantized(data) and not case.ask.is_quantized(weight)
        if is_float and case.wants_integers(case.ask.kind(node)):
            yield case.finding(
                "float-layer", node, NOTE, "quantize its input and weight, unless accuracy wants it in float",
                what="is not quantized", cost="it runs in float",
            )  # fmt: skip


def slow_codes(case: Case) -> Iterator[Finding]:
    """Codes that the runtime takes, and fuses little around."""
    slow = case.target.file.slow_activation_dtypes
    for node, data, _ in case.ask.layers():
        found = case.ask.dequantizer(data)
        if found is None or case.ask.kind(node) == "linear":
            continue  # products have as many kernels for one type as for another
        if case.ask.is_integer_layer(node) and codes_dtype(found) in slow:
            yield case.finding(
                "activation-codes", node, WARNING, "quantize activations to uint8, with a zero point",
                what=f"reads {codes_dtype(found)} codes",
                cost=f"{case.target.name} fuses few operations around them on x86: it may run in float",
            )  # fmt: skip


def biases(case: Case) -> Iterator[Finding]:
    """An integer bias is in steps of input scale x weight scale: kernels add its codes to those of the product."""
    for node, data, weight in case.ask.layers():
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        found = None if bias is None else bias.producer()
        is_integer = found is not None and found.op_type == "DequantizeLinear"
        if not (bias is not None and case.ask.is_integer_layer(node)):
            continue
        if found is not None and is_integer:
            expected, scale = _product(case, data, weight), constant_of(found, 1)
            if codes_dtype(found) != "int32" or scale is None or expected is None:
                continue
            if not np.allclose(np.ravel(scale), expected, rtol=1e-3, atol=0):
                yield case.finding(
                    "bias-scale", node, ERROR, "store the bias in steps of input scale x weight scale",
                    what=f"has a bias in other steps ({found.name!r}) than input scale x weight scale",
                    cost="an integer kernel adds it at the wrong scale: another result than the file says",
                )  # fmt: skip
        elif case.target.derives_bias(case.ask.kind(node)) and not _is_zero(constant_of(node, 2)):
            yield case.finding(
                "bias-type", node, NOTE, "store the bias as int32 in steps of input scale x weight scale",
                what="has integer weights and a bias in float",
                cost="the runtime has to quantize it; where it does not, the layer runs in float",
            )  # fmt: skip


def layer_outputs(case: Case) -> Iterator[Finding]:
    """Where the target fuses a layer with the quantizer behind it, there is one, and it takes the activation in."""
    for node, _, _ in case.ask.layers():
        if not (case.target.quantizes_output(case.ask.kind(node)) and case.ask.is_integer_layer(node)):
            continue
        value, clamp = case.behind_activations(node)
        readers = case.ask.readers(value)
        quantizers = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
        if len(quantizers) < len(readers) or value.is_graph_output():
            is_normalized = any(case.ask.kind(reader) == "batch_norm" for reader in readers)
            fold = "fold its batch norm into it before the model is quantized, and " if is_normalized else ""
            yield case.finding(
                "output-quantizer", node, WARNING,
                f"{fold}quantize its output, behind its activation, for all that reads it",
                what="has integer input and weight, and its output is not quantized",
                cost=f"{case.target.name} has no integer kernel for it that writes float: it runs in float",
            )  # fmt: skip
        elif clamp is not None and clamp.op_type == "Relu" and not all(starts_at_zero(one) for one in quantizers):
            yield case.finding(
                "activation-clamp", clamp, WARNING,
                "quantize its output to uint8 with zero point 0 (int8: -128), so that the lowest code is 0.0",
                what="is not taken into the quantizer behind it, whose codes reach below 0.0",
                cost="it stays an operation of its own, and the layer before it runs in float",
            )  # fmt: skip


def starts_at_zero(quantize: ir.Node) -> bool:
    """Is the lowest code of a quantizer 0.0, so that it takes a ReLU in?"""
    lowest = {"uint8": 0, "int8": -128, "uint16": 0, "int16": -32768}.get(codes_dtype(quantize), 0)
    zero_point = constant_of(quantize, 2)
    return zero_point is None or bool(np.all(zero_point == lowest))


def _is_zero(bias: np.ndarray | None) -> bool:
    # torch writes zeros for a layer that has no bias; runtimes drop them.
    return bias is not None and not np.any(bias)


def _product(case: Case, data: ir.Value, weight: ir.Value) -> np.ndarray | None:
    found = [case.ask.dequantizer(value) for value in (data, weight)]
    scales = [None if node is None else constant_of(node, 1) for node in found]
    if scales[0] is None or scales[1] is None or np.size(scales[0]) != 1:
        return None
    return np.asarray(np.ravel(scales[0]) * np.ravel(scales[1]))
