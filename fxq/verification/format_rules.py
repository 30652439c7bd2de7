"""Rules about single nodes, in bodies too: what the runtime refuses, whatever is around them.

The rules of quantizers are those that an export is checked by, ``fxq/export/qdq_rules.py``.
"""

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType

from fxq.export.qdq_rules import BrokenRule, broken_rules, constant_of
from fxq.verification.case import Case
from fxq.verification.finding import ERROR, WARNING, Finding
from fxq.verification.questions import bodies

_OF_PAIRS = frozenset({"pair", "codes-read", "codes-source", "integer-product"})

# For each rule of quantizers what breaking it costs, {target} being the runtime, and what to do.
_TEXTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "scale": ("{target} refuses the file", "calibrate again, and store the scale as a constant"),
        "zero-point": (
            "{target} refuses the file, or leaves the operation in float",
            "quantize symmetrically: int8 codes with zero point 0 (activation_type=QInt8 with ActivationSymmetric in "
            "onnxruntime, recipe='{target}' in fxq), or take a target that runs zero points",
        ),
        "activation-type": (
            "{target} refuses the file, or computes something else",
            "quantize activations to a type that the target takes",
        ),
        "weight-type": (
            "{target} refuses the file, or leaves the layer in float",
            "store the weight in a type that the target takes",
        ),
        "bias-type": (
            "{target} refuses the file",
            "store the bias in float (QuantizeBias=False in onnxruntime's extra_options)",
        ),
        "weight-axis": (
            "the scales lie along another dimension than the layer's output channels: it runs in float, or wrongly",
            "quantize the weight per output channel: set the axis, and compute the scales along it",
        ),
        "pair": (
            "it does not undo what was done: values come back at another scale, and nothing fuses",
            "give both the same stored scale and zero point",
        ),
        "codes-read": ("the operation computes on codes as if they were values", "put a DequantizeLinear in between"),
        "codes-source": ("the operation takes values for codes", "put a QuantizeLinear in front of it"),
        "quantized-output": (
            "callers get values rounded to 8 bits, and nothing is faster for it",
            "remove the pair in front of the output",
        ),
        "integer-product": ("the product is scaled wrongly", "quantize the model again"),
    }
)  # fmt: skip


def quantizers(case: Case) -> Iterator[Finding]:
    """Each quantizer by the rules that an export is checked by."""
    yield from _broken(case, _TEXTS)


def integer_quantizers(case: Case) -> Iterator[Finding]:
    """Each quantizer of a file that computes with integers: they stand at its ends, and not in pairs."""
    yield from _broken(case, _TEXTS.keys() - _OF_PAIRS)


def _broken(case: Case, rules: Collection[str]) -> Iterator[Finding]:
    for broken in broken_rules(case.all_nodes, case.target.file):
        if broken.rule not in rules or _is_at_border(case, broken):
            continue
        cost, fix = (text.format(target=case.target.name) for text in _TEXTS[broken.rule])
        severity = WARNING if broken.rule == "quantized-output" else ERROR
        yield case.finding(broken.rule, broken.node, severity, fix, what=broken.what, cost=cost)


def _is_at_border(case: Case, broken: BrokenRule) -> bool:
    """Is it about what enters or leaves a body? That may be codes, and what leaves is no output of the model."""
    if broken.node.graph is case.file.model.graph:
        return False
    source = broken.node.inputs[0]
    enters = source is not None and source.producer() is None
    return broken.rule == "quantized-output" or (broken.rule == "codes-source" and enters)


def activation_scales(case: Case) -> Iterator[Finding]:
    """An activation has one scale: ONNX allows several, and runtimes compute in float with them.

    But for one: OpenVINO's depthwise convolutions, as NNCF quantizes them, which its plan shows.
    """
    for node in case.all_nodes:
        scale = constant_of(node, 1) if node.op_type == "QuantizeLinear" else None
        if scale is not None and scale.size > 1 and node.inputs[0] not in case.ask.constants:
            yield case.finding(
                "activation-axis", node, WARNING, "give the activation one scale; only weights have several",
                what=f"quantizes an activation with {scale.size} scales",
                cost=f"{case.target.name} computes in float what reads it, or refuses the file",
            )  # fmt: skip


def refused_operators(case: Case) -> Iterator[Finding]:
    """Operators that the runtime has not: integer operators and sequences for TensorRT."""
    for node in case.all_nodes:
        if any(fnmatchcase(node.op_type, refused) for refused in case.target.file.refused_operators):
            is_integer = "Sequence" not in node.op_type and "Optional" not in node.op_type
            fix = (
                "write the file with QuantizeLinear and DequantizeLinear around float operators (QuantFormat.QDQ in "
                "onnxruntime)"
                if is_integer
                else "write the model without lists of tensors: concatenate, split into a fixed number, or unroll"
            )
            yield case.finding(
                "operator", node, ERROR, fix, what=f"is an operator that {case.target.name} does not have",
                cost="the runtime refuses the file",
            )  # fmt: skip


def control_flow(case: Case) -> Iterator[Finding]:
    """If, Loop and Scan: nothing is fused across their borders, and rules of places and layers end there."""
    for node in case.all_nodes:
        if bodies(node):
            yield case.finding(
                "control-flow", node, WARNING,
                "export the model with fixed decisions and unrolled loops, for the sizes that it will see",
                what="decides as it runs what is computed; where quantizers stand in its body, and whether layers in "
                "it have all that they need, was not checked",
                cost="nothing fuses across its border, and quantizers at it run by themselves",
            )  # fmt: skip
