"""What translations of operators on integers write. Imports the ONNX libraries, so that only translations import it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from onnx import TensorProto
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

INT32, INT64, FLOAT = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT
_CODES = (ir.DataType.INT8, ir.DataType.UINT8)
# What makes the QLinear form of an int32 value, kept with the value while a model is translated.
_FUSED = "fxq_qlinear"

# Called with M, the zero point of the result, its dtype, and how many M are (None for one); returns None where ONNX
# Runtime has no such operator.
Fused = Callable[[Any, Any, Any, int | None], Any | None]


def is_codes(value: Any) -> bool:
    """Return whether a value is 8-bit integers."""
    return value.dtype in _CODES


def constant(op: Any, numbers: int | Sequence[int], dtype: ir.DataType) -> Any:
    """Return integers as a constant, a scalar for a number."""
    proto: TensorProto = ir.to_proto(ir.tensor(numbers if isinstance(numbers, int) else list(numbers), dtype=dtype))
    return op.Constant(value=proto)


def as_type(op: Any, value: Any, dtype: ir.DataType) -> Any:
    """Return a value in another dtype, itself where it has it."""
    return value if value.dtype == dtype else op.Cast(value, to=dtype)


def less(op: Any, value: Any, zero_point: int, dtype: ir.DataType) -> Any:
    """Return ``value - zero_point`` in ``dtype``."""
    wide = as_type(op, value, dtype)
    return op.Sub(wide, constant(op, zero_point, dtype)) if zero_point else wide


def spread(op: Any, value: Any, zero: Any, spreads: Sequence[int], pads: Sequence[int]) -> Any:
    """Return ``value`` with zeros between its neighbours and around it: integer_conv's ``spread`` and ``pads``.

    Each dimension gets one of size 1 behind it, which is padded and then taken in.
    """
    dims, sizes = len(spreads), [int(size) for size in value.shape[-len(spreads) :]]
    behind = list(pads[dims:])
    for axis, one in enumerate(spreads):
        if one > 1:
            place = 2 + axis + 1
            value = op.Unsqueeze(value, constant(op, [place], INT64))
            widths = [0] * (2 * (dims + 3))
            widths[dims + 3 + place] = one - 1
            value = op.Pad(value, constant(op, widths, INT64), zero)
            sizes[axis] *= one
            behind[axis] -= one - 1
            value = op.Reshape(value, constant(op, [0, 0, *sizes], INT64))
    widths = [0, 0, *pads[:dims], 0, 0, *behind]
    return op.Pad(value, constant(op, widths, INT64), zero) if any(widths) else value


def may_fuse(value: Any, fused: Fused) -> Any:
    """Note how ``value``, sums in int32, is computed together with the requantize behind it; return it."""
    value.meta[_FUSED] = fused
    return value


def fused_form(value: Any) -> Fused | None:
    """Return what ``may_fuse`` noted."""
    found: Fused | None = value.meta.get(_FUSED)
    return found


def microsoft(name: str, inputs: Sequence[str], attributes: Mapping[str, OpSchema.Attribute] | None = None) -> Any:
    """Return an operator of ONNX Runtime, which onnx does not know: docs/ContribOperators.md.

    Args:
        name: of the operator.
        inputs: their names; one that ends with ``scale`` is float, "bias" is int32, the others are codes.
        attributes: by name.
    """
    optional = OpSchema.FormalParameterOption.Optional
    kinds = {one: "S" if one.endswith("scale") else "I" if one == "bias" else "T" for one in inputs}
    schema = OpSchema(
        name,
        "com.microsoft",
        1,
        inputs=[OpSchema.FormalParameter(one, kind, param_option=optional) for one, kind in kinds.items()],
        outputs=[OpSchema.FormalParameter("Y", "T")],
        type_constraints=[
            ("S", ["tensor(float)"], ""),
            ("I", ["tensor(int32)"], ""),
            ("T", ["tensor(int8)", "tensor(uint8)"], ""),
        ],
        attributes=list((attributes or {}).values()),
    )
    return Op(Opset("com.microsoft", 1), name, schema)


def integer_attribute(name: str) -> OpSchema.Attribute:
    """Return the description of an attribute that is an integer."""
    return OpSchema.Attribute(name, OpSchema.AttrType.INT)
