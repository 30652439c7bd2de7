"""Questions about what a runtime executes, and which node of the file an operation of it computes."""

import re
from collections import defaultdict
from collections.abc import Sequence

import onnx_ir as ir

from fxq.runtimes import ExecutedOp, OpTensor
from fxq.verification.case import Case, name_of
from fxq.verification.questions import MOVES_DATA, OP_KINDS

Executed = Sequence[ExecutedOp]

INTEGERS = frozenset({"int8", "uint8", "int4", "uint4", "int16", "uint16", "float8e4m3fn"})
FLOATS = frozenset({"float32", "float16", "bfloat16", "float64"})
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
# ONNX Runtime adds these to the names of nodes that it moves, and of what it converts from 16 bits.
_ADDED = re.compile(r"^InsertedPrecisionFreeCast_|(/MatMulAddFusion|_token_\d+|_nchwc|_nhwc|_pre_q)+$")


def computes(op: ExecutedOp) -> bool:
    """Is it more than a quantizer, and not computed as the file is loaded?"""
    return op.kind not in QUANTIZERS and bool(op.inputs)


def moves(op: ExecutedOp) -> bool:
    """Does it only move values, convert them, or lay them out for a kernel?"""
    return op.kind.startswith("Reorder") or OP_KINDS.get(op.kind) in MOVES_DATA


def is_float(op: ExecutedOp) -> bool:
    """Does it compute, reading and writing floats alone?"""
    return computes(op) and set(op.input_dtypes) <= FLOATS and set(op.output_dtypes) <= FLOATS


def reads_integers_alone(op: ExecutedOp) -> bool:
    """Return whether what an operation reads is codes; a mask of an attention is no operand."""
    read = set(op.input_dtypes) - {"bool"}
    return bool(read) and read <= INTEGERS


def described(tensor: OpTensor) -> str:
    """Return dtype and shape in words."""
    sizes = "?" if tensor.shape is None else "x".join(map(str, tensor.shape))
    return f"{tensor.dtype} {sizes}"


def names_of(node: ir.Node) -> list[str]:
    """Return what runtimes call a node: by its name, or where it has none by what it writes."""
    written = str(node.outputs[0].name)
    names = [node.name] if node.name else [written, f"node_of_{written}"]
    return [*names, written] if node.outputs[0].is_graph_output() else names


def node_of(case: Case, op: ExecutedOp) -> ir.Node | None:
    """Return the node of the file that ONNX Runtime's operation computes, None for one that it added."""
    told = (op.name, *(tensor.name for tensor in op.outputs))
    # A file that ONNX Runtime optimized before has such names itself.
    names = (name for one in told for name in (one, _ADDED.sub("", one)))
    return next(filter(None, map(case.file.node_of, names)), None)


def codes_around(ops: Executed) -> dict[ExecutedOp, set[str]]:
    """Return of each operation of ONNX Runtime the dtypes of the codes that are dequantized for it, and made of it.

    It makes uint8 of int8 itself where one operation reads them.
    """
    read, made = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for op in ops:
        for tensor in op.outputs if _is(op, "DequantizeLinear") else ():
            read[tensor.name].add(op.inputs[0].dtype)
        for tensor in op.inputs if _is(op, "QuantizeLinear") else ():
            made[tensor.name].add(op.outputs[0].dtype)
    return {
        op: set[str]().union(
            *(read.get(tensor.name, ()) for tensor in op.inputs), *(made.get(tensor.name, ()) for tensor in op.outputs)
        )
        for op in ops
    }


def openvino_ops(case: Case, node: ir.Node, ops: Executed) -> list[ExecutedOp]:
    """Return the operations of OpenVINO that compute a node.

    A layer that took a batch norm in has the name of that alone, and a product in an attention none: what reads the
    codes of both its operands computes it.
    """
    behind = case.ask.only_reader(node.outputs[0])
    is_normalized = behind is not None and case.ask.kind(behind) == "batch_norm"
    names = [*names_of(node), *(names_of(behind) if behind is not None and is_normalized else ())]
    found = [op for op in ops if any(_is_part(told, name) for told in (op.name, *op.fused) for name in names)]
    return found or (_readers_of_codes(case, node, ops) if case.ask.kind(node) == "matmul" else [])


def _readers_of_codes(case: Case, node: ir.Node, ops: Executed) -> list[ExecutedOp]:
    dequantizers = map(case.ask.dequantizer, case.ask.activations(node))
    codes = [one.inputs[0] for one in dequantizers if one is not None]
    quantizers = {name_of(value.producer()) for value in codes if value is not None and value.producer() is not None}
    writers = {op.name: op for op in ops}

    def read(op: ExecutedOp) -> set[str]:
        names = {tensor.name for tensor in op.inputs if tensor.dtype in INTEGERS}
        return names | {name for code in names if code in writers for name in writers[code].fused}

    return [op for op in ops if len(quantizers) > 1 and quantizers <= read(op)]


def _is(op: ExecutedOp, kind: str) -> bool:
    return op.kind == kind and bool(op.inputs)


def _is_part(name: str, node: str | None) -> bool:
    return bool(node) and (name == node or name.startswith(f"{node}/"))
