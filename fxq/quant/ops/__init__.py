"""The operators of a lowered graph, one file each: function, shapes for tracing, ONNX translation, and the row."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fxq.quant.ops import dynamic, dynamic_lstm, low_bit, quantize, recurrent
from fxq.quant.ops.lowered_op import LoweredOp

LOWERED_OPS: Mapping[Any, LoweredOp] = MappingProxyType(
    {row.function: row for file in (quantize, low_bit, dynamic, recurrent, dynamic_lstm) for row in file.ROWS}
)


def lowered_kind(function: Any) -> str | None:
    """Return the kind of an operator of a lowered graph (see LoweredOp), None for any other function."""
    row = LOWERED_OPS.get(function)
    return None if row is None else row.kind
