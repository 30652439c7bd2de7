"""What stays in float32 where the float side of a file becomes float16 or bfloat16, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch

from fxq.errors import ExportError

FLOAT = ir.DataType.FLOAT
DTYPES: Mapping[torch.dtype, ir.DataType] = MappingProxyType(
    {torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}
)
_TORCH_DTYPES = MappingProxyType({number: dtype for dtype, number in DTYPES.items()})
# With half the mantissa a sum of n terms is off by up to n units in the last place; LayerNormalization is not here,
# for ONNX has its statistics in float32 by itself (stash_type).
_SUMS = frozenset({
    "CumSum", "GlobalAveragePool", "GroupNormalization", "InstanceNormalization", "LogSoftmax", "LpNormalization",
    "MeanVarianceNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "Softmax",
})  # fmt: skip
# TensorRT's parser takes them in float32 and float16 (RTX 1.7).
_NOT_IN_BFLOAT16 = frozenset({"ConvTranspose", "HardSwish", "Mish"})
_ADDING = frozenset({"Add", "Sub", "Sum"})
# What makes a large result of a small value, or hands one on.
_STEEP = frozenset({"Clip", "Div", "Expand", "Log", "Max", "Mul", "Pow", "Reciprocal", "Sqrt"})


@dataclass(frozen=True)
class FloatSide:
    """What the float side of a file is to be.

    Args:
        dtype: FLOAT16 or BFLOAT16.
        keep_io_types: the graph's inputs and outputs stay float32.
        largest: magnitude that each value takes on samples, by its name, infinities left out.
    """

    dtype: ir.DataType
    keep_io_types: bool = False
    largest: Mapping[str, float] = field(default_factory=dict)

    @property
    def most(self) -> float:
        """The largest magnitude that is written in ``dtype``: other data may go twice as far as the samples."""
        return limits_of(self.dtype).max / 2


def find_reasons(model: ir.Model, side: FloatSide) -> dict[ir.Node, str]:
    """Return why nodes of ``model``, whose float side is float32, have to keep it."""
    found: dict[ir.Node, str] = {}
    tiny: set[ir.Value] = set()  # results that may be as small as a constant that ``dtype`` cannot hold
    for node in model.graph:
        reason = _reason(node, side)
        is_steep = node.op_type in _STEEP and not tiny.isdisjoint(node.inputs)
        if reason or is_steep:
            found[node] = reason or f"it reads what may be too small for {side.dtype.name.lower()}"
        if _reads_tiny(node, side) or (is_steep and node.op_type not in ("Div", "Mul")):
            tiny.update(node.outputs)
    for node in reversed(model.graph):
        # A stored weight has the dtype of what reads it.
        readers = [reader for reader, _ in node.outputs[0].uses()]
        if node not in found and readers and _is_stored(node) and all(reader in found for reader in readers):
            found[node] = "only nodes in float32 read it"
    return found


def _reason(node: ir.Node, side: FloatSide) -> str:
    """Return why ``node`` computes in float32, "" where it does not."""
    word = side.dtype.name.lower()
    if node.op_type in _SUMS:
        return f"{node.op_type} sums up, which {word} is too coarse for"
    if node.op_type in _NOT_IN_BFLOAT16 and side.dtype == ir.DataType.BFLOAT16:
        return f"TensorRT has no {node.op_type} in bfloat16"
    for value in (*node.inputs, *node.outputs):
        if value is None or value.dtype != FLOAT:
            continue
        if (largest := side.largest.get(str(value.name), 0.0)) > side.most:
            return f"{value.name!r} is as large as {largest:.3g}, and {word} ends at {limits_of(side.dtype).max:.3g}"
        if value.is_initializer() and not is_scale(value) and (reason := _lost(value, node, side.dtype)):
            return f"it reads {value.name!r}, {reason}"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return _reason_of_codes(node, side.dtype)
    return ""


def _reason_of_codes(node: ir.Node, dtype: ir.DataType) -> str:
    scale, codes = node.inputs[1], node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    if scale is None or codes is None or codes.dtype is None:
        return ""
    if codes.dtype == ir.DataType.INT32:
        return f"the steps of an int32 bias are too small for {dtype.name.lower()}"
    largest = float(array_of(scale).max()) * _largest_code(codes.dtype)
    if largest > limits_of(dtype).max:
        return f"its codes stand for up to {largest:.3g}, and {dtype.name.lower()} ends at {limits_of(dtype).max:.3g}"
    return ""


def _largest_code(dtype: ir.DataType) -> float:
    if dtype.is_floating_point():
        return torch.finfo(torch.float8_e4m3fn).max
    return float(2 ** (int(8 * dtype.itemsize) - dtype.is_signed()) - 1)


def _reads_tiny(node: ir.Node, side: FloatSide) -> bool:
    return any(
        value is not None
        and value.is_initializer()
        and value.dtype == FLOAT
        and not is_scale(value)
        and "precise from" in _lost(value, node, side.dtype)
        for value in node.inputs
    )


def _lost(value: ir.Value, node: ir.Node, dtype: ir.DataType) -> str:
    magnitudes = np.abs(array_of(value))
    largest = float(magnitudes[np.isfinite(magnitudes)].max(initial=0.0))
    info = limits_of(dtype)
    if largest > info.max:
        return f"which holds {largest:.3g}, and {dtype.name.lower()} ends at {info.max:.3g}"
    # Small summands, a bias among them, are lost beside what they are added to; small factors and divisors are not.
    is_summand = magnitudes.size > 1 and (node.op_type in _ADDING or list(node.inputs).index(value) > 1)
    if 0 < largest < info.smallest_normal and not is_summand:
        return (
            f"which holds at most {largest:.3g}, and {dtype.name.lower()} is precise from {info.smallest_normal:.3g} on"
        )
    return ""


def _is_stored(node: ir.Node) -> bool:
    """Return whether ``node`` makes a weight: of a stored tensor alone."""
    return node.op_type in ("DequantizeLinear", "Transpose", "Cast") and all(
        value is None or value.is_initializer() or ((producer := value.producer()) is not None and _is_stored(producer))
        for value in node.inputs
    )


class Limits(NamedTuple):
    """Magnitudes of a float dtype."""

    max: float
    smallest_normal: float
    smallest_subnormal: float


def limits_of(dtype: ir.DataType) -> Limits:
    """Return the limits of a float dtype."""
    info = torch.finfo(_TORCH_DTYPES[dtype])
    return Limits(info.max, info.smallest_normal, info.smallest_normal * info.eps)


def is_scale(value: ir.Value) -> bool:
    """Return whether only quantizers read a stored tensor, as their scale."""
    uses = list(value.uses())
    return bool(uses) and all(
        node.op_type in ("QuantizeLinear", "DequantizeLinear") and index == 1 for node, index in uses
    )


def array_of(value: ir.Value | None) -> np.ndarray:
    """Return the content of a stored tensor."""
    if value is None or value.const_value is None:
        raise ExportError(f"a stored tensor has no value: {value}")
    return np.asarray(value.const_value.numpy())
