"""The rules of a valid QDQ file, checked on the file itself.

Every scale and zero point is a stored constant, scales are positive; a QuantizeLinear is read by DequantizeLinear
only, and a DequantizeLinear reads a QuantizeLinear with the same scale, or a stored tensor; per-channel weights have
their axis where the target reads it; blocks have a scale each. What a target adds is in FileRules.

Source: ONNX QuantizeLinear and DequantizeLinear; TensorRT, "Working with quantized types", explicit quantization.
"""

from collections import Counter

import numpy as np
import onnx_ir as ir

from fxq.export.dynamic_rules import broken, check_dynamic_lstm, check_matmul_integer, dtype_name
from fxq.quant import LOWERED_OPS
from fxq.targets import FileRules


def check_qdq(model: ir.Model, rules: FileRules) -> None:
    """Check every quantizer of ``model``.

    Raises:
        ExportError: a rule is broken; names the node.
    """
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            _check_params(node, rules.affine_activations)
            _check_quantize(node, rules)
        elif node.op_type == "DequantizeLinear":
            _check_params(node, rules.affine_weights if _is_stored(node) else rules.affine_activations)
            _check_dequantize(node, rules)
        elif node.op_type == "MatMulInteger":
            check_matmul_integer(node, rules)
        elif node.op_type == "DynamicQuantizeLSTM":
            check_dynamic_lstm(node)


def count_ops(model: ir.Model) -> tuple[int, int, int]:
    """Return the number of nodes that quantize, that dequantize, and that quantize on the fly."""
    written = Counter(node.op_type for node in model.graph)
    quantize, dequantize, dynamic = (
        sum(written[name] for name in _written_by(kind)) for kind in ("quantize", "dequantize", "dynamic")
    )
    return quantize, dequantize, dynamic


def _written_by(kind: str) -> set[str]:
    return {name for row in LOWERED_OPS.values() if row.kind == kind for name in row.writes}


def _check_params(node: ir.Node, may_be_affine: bool) -> None:
    scale = _constant(node, 1, "scale")
    if not np.all(np.isfinite(scale)) or not np.all(scale > 0):
        raise broken(node, "has a scale that is not positive and finite; calibrate again, on data that is not constant")
    if "block_size" in node.attributes:
        _check_blocks(node, scale)
    elif (scale.ndim == 1) != ("axis" in node.attributes):
        raise broken(node, f"has scales of shape {scale.shape}; axis belongs to one scale per channel, and only there")
    if node.op_type == "DequantizeLinear" and dtype_name(node.inputs[0]) == "int4":
        return  # symmetric: 4 bits hold no zero point to spare, and a weight's dtype is that of its codes
    if len(node.inputs) < 3 or node.inputs[2] is None:
        raise broken(node, "has no zero point; without one ONNX takes the codes for uint8")
    zero_point = _constant(node, 2, "zero point")
    if scale.shape != zero_point.shape:
        raise broken(node, f"has scales of shape {scale.shape} and zero points of shape {zero_point.shape}")
    if not may_be_affine and np.any(zero_point != 0):
        raise broken(node, "has a zero point that is not 0; the target runs symmetric quantization only")


def _check_blocks(node: ir.Node, scale: np.ndarray) -> None:
    expected = list(_constant(node, 0, "weight").shape)
    axis, size = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    expected[axis] = -(-expected[axis] // size)
    if list(scale.shape) != expected:
        raise broken(node, f"has scales of shape {scale.shape}; blocks of {size} along axis {axis} need {expected}")


def _check_quantize(node: ir.Node, rules: FileRules) -> None:
    output = node.outputs[0]
    dtype = dtype_name(node.inputs[2])
    if dtype not in rules.activation_dtypes:
        raise broken(node, f"makes {dtype} codes; the target takes {', '.join(rules.activation_dtypes)}")
    if output.is_graph_output() and not rules.quantized_outputs_allowed:
        raise broken(node, "quantizes a graph output; the target wants outputs in float")
    for reader, _ in output.uses():
        if reader.op_type != "DequantizeLinear":
            raise broken(node, f"is read by {reader.name!r}, a {reader.op_type}; only DequantizeLinear may read codes")


def _check_dequantize(node: ir.Node, rules: FileRules) -> None:
    source = node.inputs[0]
    if source is None or not (_is_stored(node) or _made_by(source, "QuantizeLinear")):
        raise broken(node, "reads neither a QuantizeLinear nor a stored tensor")
    if _is_stored(node):
        _check_stored(node, source, rules)
        return
    quantize = source.producer()
    for index, what in ((1, "scale"), (2, "zero point")):
        if quantize is None or not np.array_equal(_constant(node, index, what), _constant(quantize, index, what)):
            raise broken(node, f"has another {what} than the QuantizeLinear it reads")
    if node.outputs[0].is_graph_output() and not rules.quantized_outputs_allowed:
        raise broken(node, "is a quantized graph output; the target wants outputs in float")


def _is_stored(node: ir.Node) -> bool:
    source = node.inputs[0]
    return source is not None and source.is_initializer()


def _check_stored(node: ir.Node, source: ir.Value, rules: FileRules) -> None:
    dtype = dtype_name(source)
    if dtype == "int32":
        if np.any(_constant(node, 2, "zero point") != 0):
            raise broken(node, "is an int32 bias with a zero point that is not 0")
        return
    if dtype not in rules.weight_dtypes:
        raise broken(node, f"stores {dtype} codes; the target takes {', '.join(rules.weight_dtypes)}")
    if "axis" not in node.attributes:
        return
    axis, expected = node.attributes["axis"].as_int(), dict(rules.weight_axes)
    if source.shape is not None and axis < 0:
        axis += len(source.shape)
    if "block_size" in node.attributes:
        return
    for reader, is_transposed in _weight_readers(node):
        wanted = expected.get(reader.op_type, axis)
        wanted = 1 - wanted if is_transposed and reader.op_type in expected else wanted
        if axis != wanted:
            raise broken(
                node, f"has its scales along axis {axis}; {reader.op_type} {reader.name!r} needs axis {wanted}"
            )


def _weight_readers(node: ir.Node) -> list[tuple[ir.Node, bool]]:
    """Return the operators that take the output as their weight, and whether it is stored transposed, (in, out)."""
    readers = []
    for reader, index in node.outputs[0].uses():
        if reader.op_type == "Transpose":
            behind = [behind for behind, _ in reader.outputs[0].uses() if behind.op_type == "MatMul"]
            readers += [(matmul, False) for matmul in behind]
        elif index == 1 and reader.op_type in ("Conv", "ConvTranspose"):
            readers.append((reader, False))
        elif index == 1 and reader.op_type == "Gemm":
            readers.append((reader, reader.attributes.get_int("transB", 0) == 0))
        elif index == 1 and reader.op_type == "MatMul":
            readers.append((reader, True))
    return readers


def _constant(node: ir.Node, index: int, what: str) -> np.ndarray:
    value = node.inputs[index]
    if value is None or value.const_value is None:
        raise broken(node, f"has a {what} that is computed; it must be a stored constant")
    return np.asarray(value.const_value.numpy())


def _made_by(value: ir.Value, op_type: str) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == op_type
