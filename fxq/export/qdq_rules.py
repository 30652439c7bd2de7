"""The rules of a valid QDQ file, checked on the file itself.

Every scale and zero point is a stored constant, scales are positive; a QuantizeLinear is read by DequantizeLinear
only, and a DequantizeLinear reads a QuantizeLinear with the same scale, or a stored tensor; per-channel weights have
their axis where the target reads it; blocks have a scale each. What a target adds is in FileRules.

Source: ONNX QuantizeLinear and DequantizeLinear; TensorRT, "Working with quantized types", explicit quantization.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from fxq.errors import ExportError
from fxq.export.dynamic_rules import broken, check_dynamic_lstm, check_matmul_integer, dtype_name
from fxq.export.stored_readers import is_operand, weight_readers
from fxq.quant import LOWERED_OPS
from fxq.targets import FileRules

# Returns what is wrong with a node, None where nothing is.
Check = Callable[[ir.Node, FileRules], str | None]


@dataclass(frozen=True)
class BrokenRule:
    """A rule that a node breaks: the rule's name, and what is wrong with the node, to be read after its name."""

    rule: str
    node: ir.Node
    what: str


def check_qdq(model: ir.Model, rules: FileRules) -> None:
    """Check every quantizer of ``model``.

    Raises:
        ExportError: a rule is broken; names the node.
    """
    for found in broken_rules(model.graph, rules):
        raise broken(found.node, found.what)


def broken_rules(nodes: Iterable[ir.Node], rules: FileRules) -> Iterator[BrokenRule]:
    """Yield every rule that a quantizer among ``nodes`` breaks, in their order."""
    for node in nodes:
        for rule, check in RULES.get(node.op_type, ()):
            what = check(node, rules)
            if what is not None:
                yield BrokenRule(rule, node, what)


def count_ops(model: ir.Model) -> tuple[int, int, int]:
    """Return the number of nodes that quantize, that dequantize, and that quantize on the fly."""
    written = Counter(node.op_type for node in model.graph)
    quantize, dequantize, dynamic = (
        sum(written[name] for name in _written_by(kind)) for kind in ("quantize", "dequantize", "dynamic")
    )
    return quantize, dequantize, dynamic


def is_stored(node: ir.Node) -> bool:
    """Return whether a DequantizeLinear reads a stored tensor."""
    source = node.inputs[0]
    return source is not None and source.is_initializer()


def constant_of(node: ir.Node, index: int) -> np.ndarray | None:
    """Return the stored tensor that a node reads, None where there is none or it is computed."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else np.asarray(value.const_value.numpy())


def codes_dtype(node: ir.Node) -> str:
    """Return the dtype of the codes that a QuantizeLinear makes or a DequantizeLinear reads."""
    if node.op_type == "DequantizeLinear" and is_stored(node):
        return dtype_name(node.inputs[0])
    if _has_zero_point(node):
        return dtype_name(node.inputs[2])
    given = node.attributes.get_int("output_dtype", 0)
    return ir.DataType(given).name.lower() if given else "uint8"


def _written_by(kind: str) -> set[str]:
    return {name for row in LOWERED_OPS.values() if row.kind == kind for name in row.writes}


def _scale(node: ir.Node, rules: FileRules) -> str | None:
    scale = constant_of(node, 1)
    if scale is None:
        return "has a scale that is computed; it must be a stored constant"
    if not np.all(np.isfinite(scale)) or not np.all(scale > 0):
        return "has a scale that is not positive and finite; calibrate again, on data that is not constant"
    if "block_size" in node.attributes:
        return _blocks(node, scale)
    if scale.ndim > 1 or (scale.size > 1 and "axis" not in node.attributes):
        return f"has scales of shape {scale.shape}; axis belongs to one scale per channel, and only there"
    zero_point = constant_of(node, 2)
    if _has_zero_point(node) and zero_point is None:
        return "has a zero point that is computed; it must be a stored constant"
    if zero_point is not None and scale.shape != zero_point.shape and max(scale.size, zero_point.size) > 1:
        return f"has scales of shape {scale.shape} and zero points of shape {zero_point.shape}"
    return None


def _blocks(node: ir.Node, scale: np.ndarray) -> str | None:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return None
    expected = [length if isinstance(length, int) else 0 for length in shape]
    axis, size = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    expected[axis] = -(-expected[axis] // size)
    if list(scale.shape) != expected:
        return f"has scales of shape {scale.shape}; blocks of {size} along axis {axis} need {expected}"
    return None


def _zero_point(node: ir.Node, rules: FileRules) -> str | None:
    if not _has_zero_point(node):
        # Of stored codes the dtype is known, and 0 is what ONNX takes.
        is_told = is_stored(node) or "output_dtype" in node.attributes or "uint8" in rules.activation_dtypes
        return None if is_told else "has no zero point; without one ONNX takes the codes for uint8"
    zero_point = constant_of(node, 2)
    if zero_point is None or _quantizer_of(node) is not None:
        return None  # that of a pair is its quantizer's
    if dtype_name(node.inputs[2]) == "int32" and np.any(zero_point != 0):
        return "is an int32 bias with a zero point that is not 0"
    is_weight = _is_constant(node.inputs[0]) and not is_operand(node.outputs[0])
    may_be_affine = rules.affine_weights if is_weight else rules.affine_activations
    if not may_be_affine and np.any(zero_point != 0):
        return "has a zero point that is not 0; the target runs symmetric quantization only"
    return None


def _activation_type(node: ir.Node, rules: FileRules) -> str | None:
    dtype = codes_dtype(node)
    if dtype in rules.activation_dtypes or _is_constant(node.inputs[0]):
        return None
    return f"makes {dtype} codes; the target takes {', '.join(rules.activation_dtypes)}"


def _weight_type(node: ir.Node, rules: FileRules) -> str | None:
    dtype = codes_dtype(node)
    if not is_stored(node) or dtype in rules.weight_dtypes or dtype == "int32":
        return None
    return f"stores {dtype} codes; the target takes {', '.join(rules.weight_dtypes)}"


def _bias_type(node: ir.Node, rules: FileRules) -> str | None:
    if rules.integer_bias or not is_stored(node) or codes_dtype(node) != "int32":
        return None
    return "stores a bias in int32 codes; the target wants it in float"


def _quantized_output(node: ir.Node, rules: FileRules) -> str | None:
    if rules.quantized_outputs_allowed or not node.outputs[0].is_graph_output():
        return None
    if node.op_type == "QuantizeLinear":
        return "quantizes a graph output; the target wants outputs in float"
    return "is a quantized graph output; the target wants outputs in float"


def _codes_read(node: ir.Node, rules: FileRules) -> str | None:
    for reader, _ in node.outputs[0].uses():
        if reader.op_type != "DequantizeLinear" and not _computes_on_codes(reader):
            return f"is read by {reader.name!r}, a {reader.op_type}; only DequantizeLinear may read codes"
    return None


def _source(node: ir.Node, rules: FileRules) -> str | None:
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    if is_stored(node) or (producer is not None and (producer.op_type in _MAKES_CODES or _computes_on_codes(producer))):
        return None
    return "reads neither a QuantizeLinear nor a stored tensor"


def _pair(node: ir.Node, rules: FileRules) -> str | None:
    quantize = _quantizer_of(node)
    if quantize is None:
        return None
    for index, what in ((1, "scale"), (2, "zero point")):
        if not _equal(constant_of(node, index), constant_of(quantize, index)):
            return f"has another {what} than the QuantizeLinear it reads"
    return None


def _weight_axis(node: ir.Node, rules: FileRules) -> str | None:
    source = node.inputs[0]
    if source is None or not _is_constant(source) or "axis" not in node.attributes or "block_size" in node.attributes:
        return None
    scale = constant_of(node, 1)
    if scale is None or scale.size == 1:
        return None
    axis, expected = node.attributes["axis"].as_int(), dict(rules.weight_axes)
    if source.shape is not None and axis < 0:
        axis += len(source.shape)
    for reader, is_transposed in weight_readers(node):
        wanted = expected.get(reader.op_type, axis)
        wanted = 1 - wanted if is_transposed and reader.op_type in expected else wanted
        if axis != wanted:
            return f"has its scales along axis {axis}; {reader.op_type} {reader.name!r} needs axis {wanted}"
    return None


def _integer_product(node: ir.Node, rules: FileRules) -> str | None:
    return _raised(lambda: check_matmul_integer(node, rules), node)


def _dynamic_lstm(node: ir.Node, rules: FileRules) -> str | None:
    return _raised(lambda: check_dynamic_lstm(node), node)


def _raised(check: Callable[[], None], node: ir.Node) -> str | None:
    try:
        check()
    except ExportError as error:
        return str(error).partition(f"{node.op_type} {node.name!r} ")[2]
    return None


def _quantizer_of(node: ir.Node) -> ir.Node | None:
    """Return the QuantizeLinear that a DequantizeLinear reads, None for anything else."""
    source = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    producer = None if source is None else source.producer()
    return producer if producer is not None and producer.op_type == "QuantizeLinear" else None


def _has_zero_point(node: ir.Node) -> bool:
    return len(node.inputs) > 2 and node.inputs[2] is not None


def _is_constant(value: ir.Value | None) -> bool:
    """Return whether the value is stored, or the codes of a stored tensor, as pytorch-quantization writes weights."""
    if value is None or value.is_initializer():
        return True
    producer = value.producer()
    return producer is not None and producer.op_type == "QuantizeLinear" and _is_constant(producer.inputs[0])


def _computes_on_codes(node: ir.Node) -> bool:
    """Return whether the node is an integer operator, such as QLinearConv, or moves codes to other places."""
    return node.op_type.startswith(("QLinear", "QGemm", "QAttention")) or node.op_type in _ON_CODES


def _equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.array_equal(one, other))


_MAKES_CODES = ("QuantizeLinear", "DynamicQuantizeLinear")
_ON_CODES = ("ConvInteger", "MatMulInteger", "MaxPool", "Reshape", "Transpose", "Slice", "Gather", "Pad")

# What is asked of each operator that quantizes, by the name of the rule; adding one is adding a line.
RULES: Mapping[str, tuple[tuple[str, Check], ...]] = MappingProxyType(
    {
        "QuantizeLinear": (
            ("scale", _scale),
            ("zero-point", _zero_point),
            ("activation-type", _activation_type),
            ("quantized-output", _quantized_output),
            ("codes-read", _codes_read),
        ),
        "DequantizeLinear": (
            ("scale", _scale),
            ("zero-point", _zero_point),
            ("codes-source", _source),
            ("weight-type", _weight_type),
            ("bias-type", _bias_type),
            ("weight-axis", _weight_axis),
            ("pair", _pair),
            ("quantized-output", _quantized_output),
        ),
        "MatMulInteger": (("integer-product", _integer_product),),
        "DynamicQuantizeLSTM": (("integer-product", _dynamic_lstm),),
    }
)
