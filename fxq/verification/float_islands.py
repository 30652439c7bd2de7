"""Float operations between integers, in what ONNX Runtime executes: values are converted to float and back for them."""

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from fxq.runtimes import ExecutedOp
from fxq.verification.case import Case, name_of
from fxq.verification.finding import NOTE, WARNING, Finding
from fxq.verification.plans import Executed, is_float, moves, node_of

# Longer ones are whole blocks that are float on purpose.
_MOST_OPS = 12


def float_islands(case: Case, ops: Executed) -> Iterator[Finding]:
    """Yield the groups of float operations that read only what was dequantized, and write only what is quantized."""
    writers = {tensor.name: op for op in ops for tensor in op.outputs}
    readers: dict[str, list[ExecutedOp]] = {}
    for op in ops:
        for tensor in op.inputs:
            readers.setdefault(tensor.name, []).append(op)
    seen: set[ExecutedOp] = set()  # what it wrote out of a function has no name
    for start in ops:
        if start in seen or not is_float(start):
            continue
        group, is_closed, waiting = set[ExecutedOp](), True, [start]
        while waiting:
            op = waiting.pop()
            if op in group:
                continue
            group.add(op)
            before = [writers.get(tensor.name) for tensor in op.inputs]
            behind = [reader for tensor in op.outputs for reader in readers.get(tensor.name, [])]
            is_closed &= bool(before) and None not in before and bool(behind)
            near = [one for one in (*before, *behind) if one is not None]
            # A layer that gives floats itself is no conversion that could be spared.
            is_closed &= all(is_float(one) or one.kind == "DequantizeLinear" for one in before if one is not None)
            is_closed &= all(is_float(one) or one.kind == "QuantizeLinear" for one in behind)
            waiting += [one for one in near if is_float(one)]
        seen |= group
        # What only moves values, and lays them out for a kernel, follows from what is around it.
        work = [op for op in ops if op in group and not moves(op)]
        if is_closed and work and len(group) <= _MOST_OPS:
            yield _island(case, work, [_node(case, op, readers) for op in work])


def _node(case: Case, op: ExecutedOp, readers: Mapping[str, list[ExecutedOp]]) -> ir.Node | None:
    """Return the node of the file; what has no name of it is known by the quantizer that reads it."""
    behind = [case.file.node_of(one.name) for tensor in op.outputs for one in readers.get(tensor.name, [])]
    values = [one.inputs[0] for one in behind if one is not None and one.op_type == "QuantizeLinear"]
    writers = [value.producer() for value in values if value is not None]
    return node_of(case, op) or next(filter(None, writers), None)


def _island(case: Case, work: list[ExecutedOp], nodes: list[ir.Node | None]) -> Finding:
    known = [node for node in nodes if node is not None]
    has_integer_form = bool(known) and all(case.wants_integers(case.ask.kind(node)) for node in known)
    parts = [
        f"{op.kind} {_written_by(op) if node is None else name_of(node)!r}"
        for op, node in zip(work, nodes, strict=True)
    ]
    severity = WARNING if has_integer_form else NOTE
    fix = (
        "quantize all its operands, constants too, and its output"
        if has_integer_form
        else "leave what stands around it in float too, or accept it"
    )
    what, cost = f"in float between integers: {', '.join(parts)}", "values are converted to float and back for it"
    name = name_of(known[0]) if known else _written_by(work[0])
    path = case.file.path_of(known[0]) if known else name
    return Finding("float-island", name, path or name, severity, fix, what, cost)


def _written_by(op: ExecutedOp) -> str:
    return op.name or op.outputs[0].name
