"""What the rules of a file say might be, and what the runtime executes disproves."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from fxq.verification.case import Case, name_of
from fxq.verification.executed_rules import quantized
from fxq.verification.finding import Finding
from fxq.verification.plans import INTEGERS, Executed, codes_around, computes, node_of, openvino_ops

# Returns whether a finding at a node is disproved by what was found in the plan, and by the plan.
Refutes = Callable[[Case, ir.Node, list[Finding], Executed], bool]


def not_refuted(case: Case, findings: list[Finding], told: list[Finding], executed: Executed) -> list[Finding]:
    """Return the findings of the rules of a file without those that the plan disproves, or tells with its own words.

    Args:
        case: the file, and its target.
        findings: of the rules of the file.
        told: the findings of the rules of the plan.
        executed: the plan; () where there is none, which disproves nothing.
    """
    again = {(one.rule, one.node) for one in told}

    def is_refuted(finding: Finding) -> bool:
        if (finding.rule, finding.node) in again:
            return True
        refutes, node = _REFUTING.get(finding.rule), case.file.node_of(finding.node)
        return bool(executed) and refutes is not None and node is not None and refutes(case, node, told, executed)

    return [finding for finding in findings if not is_refuted(finding)]


def _has_other_codes(case: Case, node: ir.Node, told: list[Finding], executed: Executed) -> bool:
    """Is a layer in integers all the same, or in float with codes around it that the runtime made itself?"""
    if not _is_told_float(case, node, told):
        return _is_in_integers(case, node, executed)
    known_by = _known_by(case, node)
    around = [codes for op, codes in codes_around(executed).items() if node_of(case, op) in known_by]
    found = {dtype for codes in around for dtype in codes}
    return bool(found) and found.isdisjoint(case.target.file.slow_activation_dtypes)


def _has_integer_bias(case: Case, node: ir.Node, told: list[Finding], executed: Executed) -> bool:
    """Does the runtime compute a layer in integers, and so has quantized its float bias itself?"""
    is_layer = case.ask.weight_index(node) is not None
    return is_layer and not _is_told_float(case, node, told) and _is_in_integers(case, node, executed)


def _is_read_in_integers(case: Case, node: ir.Node, told: list[Finding], executed: Executed) -> bool:
    """Is all that reads an activation with several scales computed in integers?"""
    readers, expected = case.ask.computing_readers(node.outputs[0]), set(quantized(case))
    in_float = {one.node for one in told if one.rule in ("float-kernel", "unknown-kernel")}
    return bool(readers) and all(one in expected and name_of(one) not in in_float for one in readers)


def _has_integer_reader(case: Case, node: ir.Node, told: list[Finding], executed: Executed) -> bool:
    """Does ONNX Runtime compute in integers what reads a pair, though the target does not plan for it?"""
    if case.target.file.runtime != "onnxruntime":
        return False
    readers = case.ask.computing_readers(node.outputs[0])
    return any(computes(op) and INTEGERS & set(op.input_dtypes) and node_of(case, op) in readers for op in executed)


def _reads_both(case: Case, node: ir.Node, told: list[Finding], executed: Executed) -> bool:
    """Does OpenVINO compute a node in a kernel that reads codes and floats, with no conversion before it?"""
    is_elementwise = case.ask.kind(node) != "matmul"
    return (
        case.target.file.runtime == "openvino"
        and is_elementwise
        and any(INTEGERS & set(op.input_dtypes) for op in openvino_ops(case, node, executed))
    )


def _is_told_float(case: Case, node: ir.Node, told: list[Finding]) -> bool:
    """Is a layer told of as computed in float, or as computed by what is not known?"""
    names = set(map(name_of, _known_by(case, node)))
    return any(one.rule in ("float-kernel", "unknown-kernel") and one.node in names for one in told)


def _is_in_integers(case: Case, node: ir.Node, executed: Executed) -> bool:
    """Does some operation of the plan compute a layer, and read integers?"""
    if case.target.file.runtime != "onnxruntime":
        return node in set(quantized(case))  # each of these has a kernel that reads integers, or is told of
    # An operation without a name is known by what it writes: the codes of the quantizer that it took in.
    behind = case.ask.readers(case.behind_activations(node)[0])
    known_by = [*_known_by(case, node), *(one for one in behind if one.op_type == "QuantizeLinear")]
    reading = [op for op in executed if computes(op) and INTEGERS & set(op.input_dtypes)]
    return any(node_of(case, op) in known_by for op in reading)


def _known_by(case: Case, node: ir.Node) -> list[ir.Node]:
    """Return a layer, and the activation that the runtime may know it by once it took that in."""
    return [one for one in (node, case.behind_activations(node)[1]) if one is not None]


# By the rule that made the finding.
_REFUTING: Mapping[str, Refutes] = MappingProxyType(
    {
        "activation-codes": _has_other_codes,
        "bias-type": _has_integer_bias,
        "activation-axis": _is_read_in_integers,
        "lone-quantizer": _has_integer_reader,
        "mixed-operands": _reads_both,
    }
)
