"""Rules about what a runtime made of the file: what was to be integers and is not. One function a runtime."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir

from fxq.export.qdq_rules import codes_dtype
from fxq.runtimes import ExecutedOp, OpTensor
from fxq.runtimes.tensorrt_rtx import weighted_ops
from fxq.verification.case import Case, name_of
from fxq.verification.finding import NOTE, WARNING, Finding
from fxq.verification.questions import LAYERS, MOVES_DATA, OP_KINDS

Executed = Sequence[ExecutedOp]
ExecutedRule = Callable[[Case, Executed], Iterator[Finding]]

_INTEGERS = ("int8", "uint8", "int4", "uint4", "int16", "uint16", "float8e4m3fn")
_FLOATS = ("float32", "float16", "bfloat16", "float64")
# ONNX Runtime adds these to the names of nodes that it moves.
_SUFFIX = re.compile(r"(/MatMulAddFusion|_token_\d+|_nchwc|_nhwc)+$")
# Where a quantizer is no part of a layer.
_OPENVINO_CONVERSIONS = ("FakeQuantize", "Subgraph", "Eltwise")
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_ELEMENTWISE = ("Add", "Mul", "Concat")
_ORT_LAYERS = ("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
_OPENVINO_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_ORT_FIX = "quantize its output too, behind its activation, and its bias, or leave it in float as a whole"
_ORT_FIX_TYPE = "quantize activations to uint8: with other codes ONNX Runtime fuses few operations on x86"
# Longer ones are whole blocks that are float on purpose.
_MOST_OPS = 12


def tensorrt_rtx(case: Case, ops: Executed) -> Iterator[Finding]:
    """Every layer of the file that is quantized has a kernel that reads integers alone."""
    by_node: dict[str, list[ExecutedOp]] = {}
    for op in ops:
        for name in op.fused:
            by_node.setdefault(name, []).append(op)
    for node in _quantized(case):
        kernels = [op for name in _names(node) for op in by_node.get(name, []) if op.inputs]
        if not kernels:
            yield _unknown(case, node)
            continue
        # What scales or moves the operands may read codes alone, and the product itself none.
        kernels = list(weighted_ops(kernels)) or kernels
        if any(_reads_integers_alone(op) for op in kernels):
            continue
        # The kernel of the product itself reads the codes; others scale what it writes.
        found = next((op for op in kernels if set(op.input_dtypes) & set(_INTEGERS)), kernels[0])
        floats = ", ".join(_described(tensor) for tensor in found.inputs if tensor.dtype in _FLOATS)
        is_mixed = bool(set(found.input_dtypes) & set(_INTEGERS))
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
    expected, told = set(_quantized(case)), set()
    dequantized = {tensor.name for op in ops if op.kind == "DequantizeLinear" for tensor in op.outputs}
    for op in ops:
        node = _node_of(case, op)
        # Fused with what follows it has the name of neither: then it is known by what it reads.
        is_layer = op.kind in _ORT_LAYERS and bool(op.inputs) and {tensor.name for tensor in op.inputs} <= dequantized
        is_float = _computes(op) and bool(set(op.input_dtypes) & set(_FLOATS))
        if node is None or not is_float or not (node in expected or is_layer):
            continue
        told.add(op)
        yield case.finding(
            "float-kernel", node, WARNING, _ORT_FIX_TYPE if _has_slow_codes(case, node) else _ORT_FIX,
            what=f"has quantized operands, and runs as a float {op.kind}",
            cost="its operands are converted back to float: it is slower than without quantizers",
        )  # fmt: skip
    yield from _islands(case, [op for op in ops if op not in told])


def openvino(case: Case, ops: Executed) -> Iterator[Finding]:
    """Quantized layers read integers, and no quantizer is left that runs by itself and writes float."""
    for node in _quantized(case):
        if node.op_type in _ELEMENTWISE:
            continue  # it computes these in any type, as part of others
        found = [
            op for op in ops if any(_is_part(told, name) for told in (op.name, *op.fused) for name in _names(node))
        ]
        layers = [op for op in found if op.kind in _OPENVINO_LAYERS] or found
        if not layers:
            yield _unknown(case, node)
        elif not any(op.inputs[0].dtype in _INTEGERS for op in layers):
            yield case.finding(
                "float-kernel", node, WARNING, "leave it in float, or quantize what stands around it too",
                what=f"is quantized, and OpenVINO computes it in {layers[0].inputs[0].dtype} ({layers[0].kind} "
                f"{layers[0].name!r})",
                cost="it is no faster than in float, and less accurate",
            )  # fmt: skip
    for op in ops:
        nodes = [one for name in (op.name, *op.fused) if (one := case.file.node_of(name))]
        quantizers = [one for one in nodes if one.op_type == "QuantizeLinear"]
        is_alone = op.kind in _OPENVINO_CONVERSIONS and all(one.op_type in _QUANTIZERS for one in nodes)
        if quantizers and is_alone and set(op.output_dtypes) <= set(_FLOATS):
            yield case.finding(
                "lone-quantizer", quantizers[0], WARNING, "remove the pair, or quantize what reads it",
                what=f"runs as a layer of its own, a {op.kind} that reads and writes float",
                cost="one pass over the tensor, and a rounding, for nothing",
            )  # fmt: skip


def _quantized(case: Case) -> Iterator[ir.Node]:
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


def _has_slow_codes(case: Case, node: ir.Node) -> bool:
    found = [case.ask.dequantizer(value) for value in case.ask.activations(node)]
    return any(one is not None and codes_dtype(one) in case.target.file.slow_activation_dtypes for one in found)


def _is_output_ready(case: Case, node: ir.Node, kind: str) -> bool:
    if not case.target.quantizes_output(kind):
        return kind == "matmul"
    readers = case.ask.readers(case.behind_activations(node)[0])
    return bool(readers) and all(reader.op_type == "QuantizeLinear" for reader in readers)


def _islands(case: Case, ops: Executed) -> Iterator[Finding]:
    """Yield the groups of float operations that read only what was dequantized, and write only what is quantized."""
    writers = {tensor.name: op for op in ops for tensor in op.outputs}
    readers: dict[str, list[ExecutedOp]] = {}
    for op in ops:
        for tensor in op.inputs:
            readers.setdefault(tensor.name, []).append(op)
    seen: set[str] = set()
    for start in ops:
        if start.name in seen or not _is_float(start):
            continue
        group, is_closed, waiting = [], True, [start]
        while waiting:
            op = waiting.pop()
            if op.name in seen:
                continue
            seen.add(op.name)
            group.append(op)
            before = [writers.get(tensor.name) for tensor in op.inputs]
            behind = [reader for tensor in op.outputs for reader in readers.get(tensor.name, [])]
            is_closed &= bool(before) and None not in before and bool(behind)
            near = [one for one in (*before, *behind) if one is not None]
            # A layer that gives floats itself is no conversion that could be spared.
            is_closed &= all(_is_float(one) or one.kind == "DequantizeLinear" for one in before if one is not None)
            is_closed &= all(_is_float(one) or one.kind == "QuantizeLinear" for one in behind)
            waiting += [one for one in near if _is_float(one)]
        # What only moves values, and lays them out for a kernel, follows from what is around it.
        is_work = any(not op.kind.startswith("Reorder") and OP_KINDS.get(op.kind) not in MOVES_DATA for op in group)
        if is_closed and is_work and len(group) <= _MOST_OPS:
            yield _island(case, group)


def _island(case: Case, group: list[ExecutedOp]) -> Finding:
    nodes = [_node_of(case, op) for op in group]
    known = [node for node in nodes if node is not None]
    kinds = {case.ask.kind(node) for node in known}
    has_integer_form = bool(kinds) and all(case.wants_integers(kind) for kind in kinds)
    parts = [
        f"{op.kind} {(op.name or op.outputs[0].name) if node is None else name_of(node)!r}"
        for op, node in zip(group, nodes, strict=True)
    ]
    severity = WARNING if has_integer_form else NOTE
    fix = (
        "quantize all its operands, constants too, and its output"
        if has_integer_form
        else "leave what stands around it in float too, or accept it"
    )
    what, cost = f"in float between integers: {', '.join(parts)}", "values are converted to float and back for it"
    name = name_of(known[0]) if known else group[0].name or group[0].outputs[0].name
    path = case.file.path_of(known[0]) if known else name
    return Finding("float-island", name, path or name, severity, fix, what, cost)


def _node_of(case: Case, op: ExecutedOp) -> ir.Node | None:
    """Return the node of the file that ONNX Runtime's operation computes, None for one that it added."""
    names = (op.name, *(tensor.name for tensor in op.outputs))
    return next(filter(None, (case.file.node_of(_SUFFIX.sub("", name)) for name in names)), None)


def _unknown(case: Case, node: ir.Node) -> Finding:
    return case.finding(
        "unknown-kernel", node, NOTE, "give its node a name of its own, or look at the runtime's own plan (--json)",
        what="is quantized, and the runtime does not tell which kernel computes it",
        cost="whether it runs in integers is not known",
    )  # fmt: skip


def _names(node: ir.Node) -> list[str]:
    """Return what runtimes call a node: by its name, or where it has none by what it writes."""
    written = str(node.outputs[0].name)
    names = [node.name] if node.name else [written, f"node_of_{written}"]
    return [*names, written] if node.outputs[0].is_graph_output() else names


def _is_float(op: ExecutedOp) -> bool:
    return _computes(op) and set(op.input_dtypes) <= set(_FLOATS) and set(op.output_dtypes) <= set(_FLOATS)


def _computes(op: ExecutedOp) -> bool:
    return op.kind not in ("QuantizeLinear", "DequantizeLinear") and bool(op.inputs)


def _reads_integers_alone(op: ExecutedOp) -> bool:
    """Return whether what an operation reads is codes; a mask of an attention is no operand."""
    read = set(op.input_dtypes) - {"bool"}
    return bool(read) and read <= set(_INTEGERS)


def _is_part(name: str, node: str | None) -> bool:
    return bool(node) and (name == node or name.startswith(f"{node}/"))


def _described(tensor: OpTensor) -> str:
    sizes = "?" if tensor.shape is None else "x".join(map(str, tensor.shape))
    return f"{tensor.dtype} {sizes}"


# By the name of the runtime; one without rules is asked whether it takes the file.
EXECUTED_RULES: Mapping[str, ExecutedRule] = MappingProxyType(
    {"tensorrt_rtx": tensorrt_rtx, "onnxruntime": onnxruntime, "openvino": openvino}
)
