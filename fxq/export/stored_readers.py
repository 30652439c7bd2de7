"""What reads a stored tensor of a file: as a weight, or as one operand of several, as activations are read."""

import onnx_ir as ir

_PASSES_ON = ("DequantizeLinear", "Expand", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_COMBINES = ("Add", "Concat", "Div", "Mul", "Sub")


def weight_readers(node: ir.Node) -> list[tuple[ir.Node, bool]]:
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


def is_operand(value: ir.Value) -> bool:
    """Return whether all that read ``value`` take it as they take activations: added, or multiplied from the left."""
    uses = value.uses()
    return bool(uses) and all(
        is_operand(reader.outputs[0])
        if reader.op_type in _PASSES_ON and index == 0
        else reader.op_type in _COMBINES or (reader.op_type, index) == ("MatMul", 0)
        for reader, index in uses
    )
