"""Rules about what a runtime made of the file: what was to be integers and is not. One function a runtime."""

import re
from collections.abc import Callable, Iterator, Mapping, Set
from types import MappingProxyType

import onnx_ir as ir

from fxq.export.qdq_rules import codes_dtype, constant_of
from fxq.runtimes import ExecutedOp
from fxq.runtimes.tensorrt_rtx import weighted_ops
from fxq.verification.case import Case
from fxq.verification.finding import NOTE, WARNING, Finding
from fxq.verification.float_islands import float_islands
from fxq.verification.layer_rules import starts_at_zero
from fxq.verification.plans import (
    FLOATS,
    INTEGERS,
    QUANTIZERS,
    Executed,
    codes_around,
    computes,
    described,
    moves,
    names_of,
    node_of,
    openvino_ops,
    reads_integers_alone,
)
from fxq.verification.questions import LAYERS

ExecutedRule = Callable[[Case, Executed], Iterator[Finding]]

# Where a quantizer is no part of a layer.
_OPENVINO_CONVERSIONS = ("FakeQuantize", "Subgraph", "Eltwise")
_ELEMENTWISE = ("Add", "Mul", "Concat")
_ORT_LAYERS = ("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
_OPENVINO_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_ORT_FIX = "quantize its output too, behind its activation, and its bias, or leave it in float as a whole"
_ORT_FIX_PRODUCT = "store its bias as int32 in steps of input scale x weight scale, or quantize its output"
_ORT_FIX_CLAMP = "quantize what its activation gives such that the lowest code is 0.0: uint8 with zero point 0"
_ORT_FIX_SCALES = "give the activations around it one scale each: only weights have several"
_ORT_FIX_HALF = (
    "store scales and what else is float in float32 (high_precision_dtype='fp32' in ModelOpt): on CPUs ONNX Runtime "
    "fuses nothing around scales in 16 bits"
)
_ORT_FIX_CODES = "quantize activations to uint8: with other codes ONNX Runtime fuses few operations on x86"
# A small kernel rounds and multiplies in one: what it reads is float, and what it multiplies are codes.
_ROUNDS_AND_MULTIPLIES = re.compile("RounCastCorr")


def tensorrt_rtx(case: Case, ops: Executed) -> Iterator[Finding]:
    """Every layer of the file that is quantized has a kernel that reads integers alone."""
    by_node: dict[str, list[ExecutedOp]] = {}
    for op in ops:
        for name in op.fused:
            by_node.setdefault(name, []).append(op)
    for node in quantized(case):
        kernels = [op for name in names_of(node) for op in by_node.get(name, []) if op.inputs]
        if not kernels:
            yield _unknown(case, node)
            continue
        # What scales or moves the operands may read codes alone, and the product itself none.
        kernels = list(weighted_ops(kernels)) or kernels
        if any(_multiplies_codes(op) for op in kernels):
            continue
        # The kernel of the product itself reads the codes; others scale what it writes.
        found = next((op for op in kernels if INTEGERS & set(op.input_dtypes)), kernels[0])
        floats = ", ".join(described(tensor) for tensor in found.inputs if tensor.dtype in FLOATS)
        is_mixed = bool(INTEGERS & set(found.input_dtypes))
        if is_mixed and found.kind == "correlation":
            yield case.finding(
                "float-residual", node, WARNING, "quantize the residual input of the add that it absorbs",
                what=f"runs in the kernel {found.name!r}, one input of which is float: {floats}",
                cost="the skip connection travels as float: four times the memory traffic",
            )  # fmt: skip
        else:
            yield case.finding(
                "float-kernel", node, WARNING,
                "leave it in float, or change what stands around it until the runtime takes the quantizers in (what "
                "reads its output through reshapes and slices counts too)",
                what=f"is quantized, and its kernel {found.name!r} ({found.kind}) computes in float: it reads {floats}",
                cost="it is no faster than in float, and less accurate",
            )  # fmt: skip


def onnxruntime(case: Case, ops: Executed) -> Iterator[Finding]:
    """Operations whose operands are all quantized read integers; no float operation stands alone between integers."""
    expected, told = set(quantized(case)), set()
    dequantizers = {tensor.name: op for op in ops if op.kind == "DequantizeLinear" for tensor in op.outputs}
    codes = codes_around(ops)
    for op in ops:
        node = node_of(case, op)
        before = [dequantizers.get(tensor.name) for tensor in op.inputs]
        # Fused with what follows it has the name of neither: then it is known by what it reads, its weight among that.
        is_layer = op.kind in _ORT_LAYERS and None not in before and any(one and not one.inputs for one in before)
        is_float = computes(op) and not moves(op) and bool(FLOATS & set(op.input_dtypes))
        if node is None or not is_float or not (node in expected or is_layer):
            continue
        told.add(op)
        yield case.finding(
            "float-kernel", node, WARNING, _ort_fix(case, node, codes[op]),
            what=f"has quantized operands, and runs as a float {op.kind}",
            cost="its operands are converted back to float: it is slower than without quantizers",
        )  # fmt: skip
    yield from float_islands(case, [op for op in ops if op not in told])


def openvino(case: Case, ops: Executed) -> Iterator[Finding]:
    """Quantized layers read integers, and no quantizer is left that runs by itself and writes float."""
    for node in quantized(case):
        if node.op_type in _ELEMENTWISE:
            continue  # it computes these in any type, as part of others
        found = openvino_ops(case, node, ops)
        layers = [op for op in found if op.kind in _OPENVINO_LAYERS] or found
        if not layers:
            yield _unknown(case, node)
        elif not any(op.inputs[0].dtype in INTEGERS for op in layers):
            yield case.finding(
                "float-kernel", node, WARNING, "leave it in float, or quantize what stands around it too",
                what=f"is quantized, and OpenVINO computes it in {layers[0].inputs[0].dtype} ({layers[0].kind} "
                f"{layers[0].name!r})",
                cost="it is no faster than in float, and less accurate",
            )  # fmt: skip
    for op in ops:
        nodes = [one for name in (op.name, *op.fused) if (one := case.file.node_of(name))]
        quantizers = [one for one in nodes if one.op_type == "QuantizeLinear"]
        is_alone = op.kind in _OPENVINO_CONVERSIONS and all(one.op_type in QUANTIZERS for one in nodes)
        if quantizers and is_alone and set(op.output_dtypes) <= FLOATS:
            yield case.finding(
                "lone-quantizer", quantizers[0], WARNING, "remove the pair, or quantize what reads it",
                what=f"runs as a layer of its own, a {op.kind} that reads and writes float",
                cost="one pass over the tensor, and a rounding, for nothing",
            )  # fmt: skip


def quantized(case: Case) -> Iterator[ir.Node]:
    """Yield the operations of the file whose operands are all quantized, and that the target computes in integers."""
    ask = case.ask
    layers = {node for node, _, _ in ask.layers()}
    for node in case.nodes:
        kind = ask.kind(node)
        if node in layers:
            if kind in LAYERS and case.wants_integers(kind) and ask.is_integer_layer(node):
                yield node
        elif case.wants_integers(kind):
            operands = ask.activations(node)
            # An operand that is stored in float keeps the whole in float: that is another rule's.
            is_whole = operands and len(operands) == len([value for value in node.inputs if value is not None])
            if is_whole and all(ask.is_quantized(value) for value in operands) and _is_output_ready(case, node, kind):
                yield node


def _ort_fix(case: Case, node: ir.Node, codes: Set[str]) -> str:
    """Return what to do that ONNX Runtime computes an operation in integers, around which it has such codes."""
    found = [one for one in map(case.ask.dequantizer, case.ask.activations(node)) if one is not None]
    value, clamp = case.behind_activations(node)
    behind = [reader for reader in case.ask.readers(value) if reader.op_type == "QuantizeLinear"]
    scales = [scale for one in (*found, *behind) if (scale := constant_of(one, 1)) is not None]
    if any(scale.dtype.itemsize == 2 for scale in scales):
        return _ORT_FIX_HALF
    if any(scale.size > 1 for scale in scales):
        return _ORT_FIX_SCALES
    if case.ask.kind(node) == "linear":
        return _ORT_FIX_PRODUCT
    if not _is_output_ready(case, node, case.ask.kind(node)):
        return _ORT_FIX
    if not (codes or set(map(codes_dtype, found))).isdisjoint(case.target.file.slow_activation_dtypes):
        return _ORT_FIX_CODES  # of the file, where the plan tells of none
    return _ORT_FIX if clamp is None or all(map(starts_at_zero, behind)) else _ORT_FIX_CLAMP


def _is_output_ready(case: Case, node: ir.Node, kind: str) -> bool:
    if not case.target.quantizes_output(kind):
        return kind == "matmul"
    readers = case.ask.readers(case.behind_activations(node)[0])
    return bool(readers) and all(reader.op_type == "QuantizeLinear" for reader in readers)


def _unknown(case: Case, node: ir.Node) -> Finding:
    return case.finding(
        "unknown-kernel", node, NOTE, "give its node a name of its own, or look at the runtime's own plan (--json)",
        what="is quantized, and the runtime does not tell which kernel computes it",
        cost="whether it runs in integers is not known",
    )  # fmt: skip


def _multiplies_codes(op: ExecutedOp) -> bool:
    return reads_integers_alone(op) or _ROUNDS_AND_MULTIPLIES.search(op.name) is not None


# By the name of the runtime; one without rules is asked whether it takes the file.
EXECUTED_RULES: Mapping[str, ExecutedRule] = MappingProxyType(
    {"tensorrt_rtx": tensorrt_rtx, "onnxruntime": onnxruntime, "openvino": openvino}
)
