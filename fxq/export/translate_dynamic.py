"""Operators that quantize on the fly as ONNX operators, in the shape that ONNX Runtime fuses.

``dynamic_linear``: DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul(., Mul(step of x, step of weight)) -> Add.
ONNX Runtime makes one DynamicQuantizeMatMul of them, per channel too, if the weight is stored as (in, out), the steps
are multiplied first and the bias is the second operand of the Add (core/optimizer/matmul_integer_to_float.cc and
dynamic_quantize_matmul_fusion.cc); the transposition written here is taken into the stored weight later.

``dynamic_lstm_layer``: com.microsoft.DynamicQuantizeLSTM, an operator of ONNX Runtime. ONNX has no integer LSTM.
"""

import math
from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

from fxq.quant.dynamic_ops import DYNAMIC_LINEAR, DYNAMIC_MATMUL
from fxq.quant.recurrent_ops import DYNAMIC_LSTM_LAYER

MICROSOFT = "com.microsoft"
FLOAT = ir.DataType.FLOAT


def dynamic_translations(op: Opset) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the translations of the operators that quantize on the fly; they compute in float32."""

    def dynamic_linear(x: Any, codes: Any, step: Any, bias: Any | None) -> Any:
        x_codes, x_step, x_zero = op.DynamicQuantizeLinear(cast(op, x, FLOAT))
        product = op.Cast(op.MatMulInteger(x_codes, op.Transpose(codes, perm=[1, 0]), x_zero), to=FLOAT)
        result = op.Mul(product, op.Mul(x_step, cast(op, step, FLOAT)))
        result = result if bias is None else op.Add(result, cast(op, bias, FLOAT))
        return cast(op, result, x.dtype)

    def dynamic_matmul(a: Any, b: Any) -> Any:
        a_codes, a_step, a_zero = op.DynamicQuantizeLinear(cast(op, a, FLOAT))
        b_codes, b_step, b_zero = op.DynamicQuantizeLinear(cast(op, b, FLOAT))
        product = op.Cast(op.MatMulInteger(a_codes, b_codes, a_zero, b_zero), to=FLOAT)
        return cast(op, op.Mul(product, op.Mul(a_step, b_step)), a.dtype)

    def dynamic_lstm_layer(  # noqa: PLR0913 - the signature of fxq::dynamic_lstm_layer
        x: Any, codes: Any, recurrent: Any, steps: Any, recurrent_steps: Any, bias: Any, h0: Any, c0: Any
    ) -> Any:
        lstm = Op(Opset(MICROSOFT, 1), "DynamicQuantizeLSTM", _dynamic_lstm_schema())
        floats = [cast(op, value, FLOAT) for value in (x, bias, h0, c0, steps, recurrent_steps)]
        x_float, bias, h0_float, c0_float, steps, recurrent_steps = floats
        directions, _, gates = recurrent.shape
        outputs = lstm(
            x_float, codes, recurrent, bias, None, h0_float, c0_float, None, steps,
            _zeros_like(op, steps), recurrent_steps, _zeros_like(op, recurrent_steps),
            hidden_size=gates // 4, direction=direction_of(directions),
        )  # fmt: skip  # the operator's inputs, in its order
        return outputs if x.dtype == FLOAT else tuple(op.Cast(output, to=x.dtype) for output in outputs)

    return {
        DYNAMIC_LINEAR: dynamic_linear,
        DYNAMIC_MATMUL: dynamic_matmul,
        DYNAMIC_LSTM_LAYER: dynamic_lstm_layer,
    }


def cast(op: Opset, value: Any, dtype: ir.DataType) -> Any:
    """Return ``value`` in ``dtype``, itself where it is."""
    return value if value.dtype == dtype else op.Cast(value, to=dtype)


def direction_of(directions: int) -> str:
    """Return what ONNX calls one or two directions."""
    return "bidirectional" if directions == 2 else "forward"


def _zeros_like(op: Opset, steps: Any) -> Any:
    shape = list(steps.shape)
    return op.Constant(
        value=onnx.helper.make_tensor("", onnx.TensorProto.INT8, shape, bytes(math.prod(shape)), raw=True)
    )


def _dynamic_lstm_schema() -> OpSchema:
    """Return the operator as ONNX Runtime documents it (docs/ContribOperators.md); onnx does not know it."""
    inputs = {"X": "T", "W": "T2", "R": "T2", "B": "T", "sequence_lens": "T1", "initial_h": "T", "initial_c": "T"}
    inputs |= {"P": "T", "W_scale": "T", "W_zero_point": "T2", "R_scale": "T", "R_zero_point": "T2"}
    optional = OpSchema.FormalParameterOption.Optional
    return OpSchema(
        "DynamicQuantizeLSTM",
        MICROSOFT,
        1,
        inputs=[OpSchema.FormalParameter(name, kind, param_option=optional) for name, kind in inputs.items()],
        outputs=[OpSchema.FormalParameter(name, "T") for name in ("Y", "Y_h", "Y_c")],
        type_constraints=[
            ("T", ["tensor(float)"], ""),
            ("T1", ["tensor(int32)"], ""),
            ("T2", ["tensor(int8)", "tensor(uint8)"], ""),
        ],
        attributes=[
            OpSchema.Attribute("hidden_size", OpSchema.AttrType.INT),
            OpSchema.Attribute("direction", OpSchema.AttrType.STRING),
        ],
    )
