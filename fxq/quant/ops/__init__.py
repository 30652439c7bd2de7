"""The operators of a lowered graph, one file each: function, shapes for tracing, ONNX translation, and the row."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fxq.quant.ops import (
    dynamic,
    dynamic_lstm,
    integer_layers,
    integer_math,
    low_bit,
    quantize,
    recurrent,
    requantize,
)
from fxq.quant.ops.lowered_op import LoweredOp

_FILES = (quantize, low_bit, dynamic, recurrent, dynamic_lstm, integer_layers, integer_math, requantize)
LOWERED_OPS: Mapping[Any, LoweredOp] = MappingProxyType({row.function: row for file in _FILES for row in file.ROWS})


def lowered_kind(function: Any) -> str | None:
    """Return the kind of an operator of a lowered graph (see LoweredOp), None for any other function."""
    row = LOWERED_OPS.get(function)
    return None if row is None else row.kind
