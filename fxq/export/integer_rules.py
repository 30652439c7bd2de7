"""The rule of an integer file, checked on the file itself: from QuantizeLinear to DequantizeLinear there are no floats.

Scales of QLinear operators are stored numbers: what a kernel computes with them, it computes from integers to integers.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from fxq.export.dynamic_rules import broken

_INTEGERS = frozenset({
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL,
})  # fmt: skip


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
