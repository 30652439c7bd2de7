"""The rules of a valid QDQ file, checked on the file itself.

Every scale and zero point is a stored constant, scales are positive; a QuantizeLinear is read by DequantizeLinear
only, and a DequantizeLinear reads a QuantizeLinear with the same scale, or a stored tensor; per-channel weights have
their axis where the target reads it. What a target adds is in ExportRules.

Source: ONNX QuantizeLinear and DequantizeLinear; TensorRT, "Working with quantized types", explicit quantization.
"""

import numpy as np
import onnx_ir as ir

from fxq.errors import ExportError
from fxq.export.options import ExportRules


def check_qdq(model: ir.Model, rules: ExportRules) -> None:
    """Check every quantizer of ``model``.

    Raises:
        ExportError: a rule is broken; names the node.
    """
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            _check_params(node, rules.zero_point_must_be_zero)
            _check_quantize(node, rules)
        elif node.op_type == "DequantizeLinear":
            _check_params(node, rules.zero_point_must_be_zero)
            _check_dequantize(node, rules)


def count_ops(model: ir.Model) -> tuple[int, int]:
    """Return the number of QuantizeLinear and of DequantizeLinear nodes."""
    kinds = [node.op_type for node in model.graph]
    return kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")


def _check_params(node: ir.Node, must_be_zero: bool) -> None:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        raise _broken(node, "has no zero point; without one ONNX takes the codes for uint8")
    scale, zero_point = _constant(node, 1, "scale"), _constant(node, 2, "zero point")
    if not np.all(np.isfinite(scale)) or not np.all(scale > 0):
        raise _broken(
            node, "has a scale that is not positive and finite; calibrate again, on data that is not constant"
        )
    if scale.shape != zero_point.shape:
        raise _broken(node, f"has scales of shape {scale.shape} and zero points of shape {zero_point.shape}")
    if must_be_zero and np.any(zero_point != 0):
        raise _broken(node, "has a zero point that is not 0; the target runs symmetric quantization only")
    if (scale.ndim == 1) != ("axis" in node.attributes):
        raise _broken(node, f"has scales of shape {scale.shape}; axis belongs to one scale per channel, and only there")


def _check_quantize(node: ir.Node, rules: ExportRules) -> None:
    output = node.outputs[0]
    dtype = _dtype_name(node.inputs[2])
    if dtype not in rules.activation_dtypes:
        raise _broken(node, f"makes {dtype} codes; the target takes {', '.join(rules.activation_dtypes)}")
    if output.is_graph_output() and not rules.quantized_outputs_allowed:
        raise _broken(node, "quantizes a graph output; the target wants outputs in float")
    for reader, _ in output.uses():
        if reader.op_type != "DequantizeLinear":
            raise _broken(node, f"is read by {reader.name!r}, a {reader.op_type}; only DequantizeLinear may read codes")


def _check_dequantize(node: ir.Node, rules: ExportRules) -> None:
    source = node.inputs[0]
    if source is None or not (source.is_initializer() or _made_by(source, "QuantizeLinear")):
        raise _broken(node, "reads neither a QuantizeLinear nor a stored tensor")
    if source.is_initializer():
        _check_stored(node, source, rules)
        return
    quantize = source.producer()
    for index, what in ((1, "scale"), (2, "zero point")):
        if quantize is None or not np.array_equal(_constant(node, index, what), _constant(quantize, index, what)):
            raise _broken(node, f"has another {what} than the QuantizeLinear it reads")
    if node.outputs[0].is_graph_output() and not rules.quantized_outputs_allowed:
        raise _broken(node, "is a quantized graph output; the target wants outputs in float")


def _check_stored(node: ir.Node, source: ir.Value, rules: ExportRules) -> None:
    dtype = _dtype_name(source)
    if dtype == "int32":
        if np.any(_constant(node, 2, "zero point") != 0):
            raise _broken(node, "is an int32 bias with a zero point that is not 0")
        return
    if dtype not in rules.weight_dtypes:
        raise _broken(node, f"stores {dtype} codes; the target takes {', '.join(rules.weight_dtypes)}")
    if "axis" not in node.attributes:
        return
    axis, expected = node.attributes["axis"].as_int(), dict(rules.weight_axes)
    if source.shape is not None and axis < 0:
        axis += len(source.shape)
    for reader in _weight_readers(node):
        wanted = expected.get(reader.op_type, axis)
        if axis != wanted:
            raise _broken(
                node, f"has its scales along axis {axis}; {reader.op_type} {reader.name!r} needs axis {wanted}"
            )


def _weight_readers(node: ir.Node) -> list[ir.Node]:
    """Return the operators that take the output as (out, in) weight: behind a Transpose for MatMul."""
    readers = []
    for reader, index in node.outputs[0].uses():
        if reader.op_type == "Transpose":
            readers += [behind for behind, _ in reader.outputs[0].uses() if behind.op_type == "MatMul"]
        elif index == 1 and (reader.op_type in ("Conv", "ConvTranspose") or _is_linear(reader)):
            readers.append(reader)
    return readers


def _is_linear(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1


def _constant(node: ir.Node, index: int, what: str) -> np.ndarray:
    value = node.inputs[index]
    if value is None or value.const_value is None:
        raise _broken(node, f"has a {what} that is computed; it must be a stored constant")
    return np.asarray(value.const_value.numpy())


def _dtype_name(value: ir.Value | None) -> str:
    return "unknown" if value is None or value.dtype is None else value.dtype.name.lower()


def _made_by(value: ir.Value, op_type: str) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == op_type


def _broken(node: ir.Node, what: str) -> ExportError:
    return ExportError(f"the exported file breaks a rule: {node.op_type} {node.name!r} {what}")
