"""The rule of an integer file, checked on the file itself: from QuantizeLinear to DequantizeLinear there are no floats.

Scales of QLinear operators are stored numbers: what a kernel computes with them, it computes from integers to integers.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from fxq.errors import ExportError
from fxq.export.dynamic_rules import broken

_INTEGERS = frozenset({
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL,
})  # fmt: skip

_PRODUCTS = ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger")


def is_integer_file(model: ir.Model) -> bool:
    """Return whether the file multiplies integers, has no pairs of quantizers and passes :func:`check_integer`."""
    nodes = list(model.graph)
    behind = [
        reader.op_type for node in nodes if node.op_type == "QuantizeLinear" for reader, _ in node.outputs[0].uses()
    ]
    if not behind or "DequantizeLinear" in behind or not any(node.op_type in _PRODUCTS for node in nodes):
        return False
    try:
        check_integer(model)
    except ExportError:
        return False
    return True


def check_integer(model: ir.Model) -> None:
    """Check every value that is computed from what a QuantizeLinear makes.

    Raises:
        ExportError: one is a float, or is quantized again; names the node.
    """
    common.ShapeInferencePass()(model)
    integers: set[ir.Value] = set()
    floats: set[ir.Value] = set()
    for node in model.graph:
        reads_integers = any(value in integers for value in node.inputs)
        if any(value in floats for value in node.inputs):
            if node.op_type == "QuantizeLinear":
                raise broken(node, "quantizes what was dequantized: an integer file does that at its inputs only")
            floats.update(node.outputs)
        elif node.op_type == "QuantizeLinear":
            integers.update(node.outputs)
        elif reads_integers and node.op_type == "DequantizeLinear":
            floats.update(node.outputs)
        elif reads_integers:
            integers.update(node.outputs)
            for value in node.outputs:
                # Operators of ONNX Runtime, whose types onnx does not infer, give codes.
                if value.dtype is not None and value.dtype not in _INTEGERS:
                    raise broken(node, f"makes {value.dtype.name.lower()} of integers")
