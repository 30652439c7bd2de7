"""Activations that a file writes as several nodes, such as x * tanh(softplus(x)).

A formula is known by its values: what computes with one tensor and stored numbers is evaluated at some points and
compared with each activation there, in whatever order it adds and multiplies.
"""

import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

POINTS = np.linspace(-8, 8, 65)
POINTS.setflags(write=False)
_erf = np.vectorize(math.erf)
_GATE = np.clip(POINTS / 6 + 0.5, 0, 1)
ACTIVATIONS: Mapping[str, np.ndarray] = MappingProxyType(
    {
        "silu": POINTS / (1 + np.exp(-POINTS)),
        "hardsigmoid": _GATE,
        "hardswish": POINTS * _GATE,
        "mish": POINTS * np.tanh(np.log1p(np.exp(POINTS))),
        "gelu": POINTS * (1 + _erf(POINTS / math.sqrt(2))) / 2,
    }
)
_EXPECTED = np.stack([*ACTIVATIONS.values()])
# GELU by tanh is within 0.0005 of GELU, and numbers stored in 16 bits are within 0.001 of what they mean.
_TOLERANCE = 0.002
# GELU by tanh has nine or ten.
_MOST_NODES = 12
_LAST = ("Mul", "Div")
_OPERATORS: Mapping[str, Callable[..., np.ndarray]] = MappingProxyType(
    {
        "Add": np.add,
        "Sub": np.subtract,
        "Mul": np.multiply,
        "Div": np.divide,
        "Pow": np.power,
        "Neg": np.negative,
        "Exp": np.exp,
        "Log": np.log,
        "Erf": _erf,
        "Tanh": np.tanh,
        "Relu": lambda x: np.maximum(x, 0),
        "Min": lambda *operands: functools.reduce(np.minimum, operands),  # any number of them
        "Max": lambda *operands: functools.reduce(np.maximum, operands),
        "Softplus": lambda x: np.logaddexp(x, 0),
        "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    }
)
_POINTWISE = frozenset({"Clip", "HardSigmoid", *_OPERATORS})
_PAIR = ("QuantizeLinear", "DequantizeLinear")
# Returns where a value comes from that was not computed anew, but dequantized or rounded.
Exact = Callable[[ir.Value], ir.Value]


@dataclass(frozen=True)
class Formula:
    """An activation, written as several nodes.

    Args:
        kind: which, a word of fxq/kinds.py.
        source: what it is computed from; where that is dequantized, the codes.
        nodes: what computes it, in their order; only the last is read from outside.
    """

    kind: str
    source: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def last(self) -> ir.Node:
        """The node that gives the result."""
        return self.nodes[-1]


def without_dequantizer(value: ir.Value) -> ir.Value:
    """Return the codes of what is dequantized, which each reader may do for itself; else the value."""
    producer = value.producer()
    is_dequantized = producer is not None and producer.op_type == "DequantizeLinear"
    codes = producer.inputs[0] if producer is not None and is_dequantized else None
    return value if codes is None else codes


def without_pairs(value: ir.Value) -> ir.Value:
    """Return what was rounded, of what a pair of quantizers rounds; else the value."""
    while (codes := without_dequantizer(value)) is not value:
        quantize = codes.producer()
        rounded = quantize.inputs[0] if quantize is not None and quantize.op_type == "QuantizeLinear" else None
        if rounded is None:
            return value
        value = rounded
    return value


def find_formulas(
    graph: ir.Graph, constants: Collection[ir.Value], exact: Exact = without_dequantizer
) -> dict[ir.Node, Formula]:
    """Return the formulas of a graph by their last nodes, in the order of these.

    Args:
        graph: which is not changed.
        constants: what is stored in it, or computed of that alone.
        exact: ``without_dequantizer``, or ``without_pairs`` for formulas that have quantizers inside.
    """
    order = {node: at for at, node in enumerate(graph)}
    found = (_formula(node, order, constants, exact) for node in order if node.op_type in _LAST)
    return {formula.last: formula for formula in found if formula is not None}


def _formula(
    last: ir.Node, order: Mapping[ir.Node, int], constants: Collection[ir.Value], exact: Exact
) -> Formula | None:
    """Walk back from a node until what is read on the way is one tensor, and the whole an activation of it."""
    nodes: set[ir.Node] = set()
    reads = {last.outputs[0]}
    while len(nodes) < _MOST_NODES:
        latest = max(
            (value.producer() for value in reads), key=lambda node: -1 if node is None else order.get(node, -1)
        )
        if latest is None or latest not in order or latest.op_type not in _POINTWISE:
            return None
        operands = [value for value in latest.inputs if value is not None]
        if any(value in constants and not _is_number(value) for value in operands):
            return None
        nodes.add(latest)
        reads = reads.difference(latest.outputs) | {exact(value) for value in operands if value not in constants}
        if not reads:
            return None  # stored numbers alone
        if len(reads) > 1:
            continue
        (source,) = reads
        parts = sorted(nodes, key=lambda node: order[node])
        kind = _kind(parts, source, exact) if _is_closed(parts, exact) else None
        if kind is not None:
            return Formula(kind, source, tuple(parts))
    return None


def _is_number(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.size == 1


def _is_closed(parts: list[ir.Node], exact: Exact) -> bool:
    """Is what is computed on the way read by nothing else?"""
    waiting, inner = [value for node in parts[:-1] for value in node.outputs], set(parts)
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            return False
        for node, _ in value.uses():
            if exact is without_pairs and node.op_type in _PAIR:
                waiting += node.outputs
            elif node not in inner:
                return False
    return True


def _kind(parts: Iterable[ir.Node], source: ir.Value, exact: Exact) -> str | None:
    values, result = {source: POINTS}, POINTS
    with np.errstate(all="ignore"):  # the logarithm of a negative number is like no activation
        for node in parts:
            result = values[node.outputs[0]] = _computed(
                node, [_operand(value, values, exact) for value in node.inputs]
            )
        alike = (np.abs(result - _EXPECTED) <= _TOLERANCE * (1 + np.abs(_EXPECTED))).all(axis=1)
    return next((kind for kind, is_alike in zip(ACTIVATIONS, alike, strict=True) if is_alike), None)


def _operand(value: ir.Value | None, values: Mapping[ir.Value, np.ndarray], exact: Exact) -> np.ndarray | None:
    if value is None:
        return None
    found = values.get(exact(value))
    if found is None:
        assert value.const_value is not None
        found = np.asarray(value.const_value.numpy()).astype(np.float64).reshape(())
    return found


def _computed(node: ir.Node, operands: list[np.ndarray | None]) -> np.ndarray:
    x = operands[0]
    assert x is not None
    if node.op_type == "Clip":
        lo, hi = [*operands[1:], None, None][:2]
        # Up to opset 10 the bounds are attributes.
        lo = np.asarray(node.attributes.get_float("min", -np.inf)) if lo is None else lo
        hi = np.asarray(node.attributes.get_float("max", np.inf)) if hi is None else hi
        return np.asarray(np.clip(x, lo, hi))
    if node.op_type == "HardSigmoid":
        alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
        return np.asarray(np.clip(alpha * x + beta, 0, 1))
    return np.asarray(_OPERATORS[node.op_type](*operands))
