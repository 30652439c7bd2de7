"""The rules of operators that quantize on the fly, checked on the file: they read what is computed for them, no other.

A MatMulInteger takes the codes and the zero point of one DynamicQuantizeLinear on its left, and on its right stored
codes, or those of another. The steps of stored codes are constant, positive, and one per column or one.

Source: ONNX DynamicQuantizeLinear and MatMulInteger; docs/ContribOperators.md of ONNX Runtime for the LSTM.
"""

import numpy as np
import onnx_ir as ir

from fxq.errors import ExportError
from fxq.targets import FileRules


def check_matmul_integer(node: ir.Node, rules: FileRules) -> None:
    """Check where an integer product takes its codes from.

    Raises:
        ExportError: a rule is broken; names the node.
    """
    left, right = (node.inputs[index] for index in (0, 1))
    if not _same_quantizer(left, _input(node, 2)):
        raise broken(node, "takes its left codes and their zero point from two places")
    right = _before_transpose(right)
    if right is None or not right.is_initializer():
        if not _same_quantizer(right, _input(node, 3)):
            raise broken(node, "takes its right codes and their zero point from two places")
        return
    if (dtype := dtype_name(right)) not in rules.weight_dtypes:
        raise broken(node, f"stores {dtype} codes; the target takes {', '.join(rules.weight_dtypes)}")
    product = node.inputs[1]
    columns = product.shape[-1] if product is not None and product.shape is not None else 0
    for step in _stored_steps(node):
        _check_steps(node, step, (1, columns))


def check_dynamic_lstm(node: ir.Node) -> None:
    """Check the steps of both weights of an integer LSTM; errors of :func:`check_matmul_integer`."""
    for codes, step in ((1, 8), (2, 10)):
        stored = _input(node, codes)
        if stored is None or not stored.is_initializer():
            raise broken(node, "has a weight that is computed; it must be a stored tensor")
        _check_steps(node, _input(node, step), None)


def dtype_name(value: ir.Value | None) -> str:
    """Return the dtype of a value as ONNX writes it, in lower case."""
    return "unknown" if value is None or value.dtype is None else value.dtype.name.lower()


def broken(node: ir.Node, what: str) -> ExportError:
    """Return the error that names the node and what is wrong with it."""
    return ExportError(f"the exported file breaks a rule: {node.op_type} {node.name!r} {what}")


def _before_transpose(value: ir.Value | None) -> ir.Value | None:
    """Return the stored codes that are transposed into ``value``, which something else reads as they lie."""
    producer = None if value is None else value.producer()
    return producer.inputs[0] if producer is not None and producer.op_type == "Transpose" else value


def _same_quantizer(codes: ir.Value | None, zero_point: ir.Value | None) -> bool:
    producers = [None if value is None else value.producer() for value in (codes, zero_point)]
    first = producers[0]
    return first is not None and first is producers[1] and first.op_type == "DynamicQuantizeLinear"


def _stored_steps(node: ir.Node) -> list[ir.Value]:
    """Return the constants that the product is scaled by: MatMulInteger -> Cast -> Mul(., Mul(step of x, constant))."""
    casts = [reader for reader, _ in node.outputs[0].uses() if reader.op_type == "Cast"]
    scaled = [reader for cast in casts for reader, _ in cast.outputs[0].uses() if reader.op_type == "Mul"]
    inner = [value.producer() for mul in scaled for value in mul.inputs if value is not None]
    steps = [mul for mul in inner if mul is not None and mul.op_type == "Mul"]
    found = [value for mul in steps for value in mul.inputs if value is not None and value.is_initializer()]
    if not found:
        raise broken(node, "has no stored step that its products are scaled by")
    return found


def _check_steps(node: ir.Node, step: ir.Value | None, sizes: tuple[int | ir.SymbolicDim, ...] | None) -> None:
    if step is None or step.const_value is None:
        raise broken(node, "has a step that is computed; it must be a stored constant")
    values = step.const_value.numpy()
    if not np.all(np.isfinite(values)) or not np.all(values > 0):
        raise broken(node, "has a step that is not positive and finite")
    if sizes is not None and values.size not in sizes:
        raise broken(node, f"has {values.size} steps for {sizes[-1]} columns")


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
