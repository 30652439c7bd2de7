"""One layer of an LSTM on integers, with ranges found as it runs: com.microsoft.DynamicQuantizeLSTM of ONNX Runtime.

ONNX has no integer LSTM. Layout and gate order are those of :mod:`fxq.quant.ops.recurrent`. It has no gradient.
Importing this module registers it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxq.quant.ops.dynamic import integer_product
from fxq.quant.ops.lowered_op import LoweredOp
from fxq.quant.ops.recurrent_steps import Cell, SteppedLayer, fake_layer, lstm_gates

_MICROSOFT = "com.microsoft"


@torch.library.custom_op(
    "fxq::dynamic_lstm_layer",
    mutates_args=(),
    schema="(Tensor x, Tensor codes, Tensor recurrent_codes, Tensor steps, Tensor recurrent_steps, Tensor bias, "
    "Tensor h0, Tensor c0) -> (Tensor, Tensor, Tensor)",
)
def dynamic_lstm_layer(  # noqa: PLR0913 - the inputs of com.microsoft.DynamicQuantizeLSTM
    x: Tensor,
    codes: Tensor,
    recurrent_codes: Tensor,
    steps: Tensor,
    recurrent_steps: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """``lstm_layer`` on integers, as ONNX Runtime's DynamicQuantizeLSTM computes it.

    ``x`` is quantized as one tensor, all time steps together; the hidden state is quantized anew in each step, with
    the range of the whole batch. (ONNX Runtime with several threads takes the range over each thread's samples.)

    Args:
        codes, recurrent_codes: int8, (D, in, 4 H) and (D, H, 4 H): transposed, as that operator wants them.
        steps, recurrent_steps: (D,) or (D, 4 H).
    """
    layer = SteppedLayer(x, h0, c0)
    for direction in range(len(h0)):
        product, x_step = integer_product(x, codes[direction].T)
        w_x = product * (x_step * steps[direction].float())
        recurrent = (recurrent_codes[direction].T, recurrent_steps[direction].float())
        layer.run(direction, w_x, _dynamic_lstm_cell(*recurrent, bias[direction].float()))
    return layer.results(x.dtype)


def _dynamic_lstm_cell(codes: Tensor, step: Tensor, bias: Tensor) -> Cell:
    both = bias[: len(codes)] + bias[len(codes) :]

    def cell(w_x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        product, h_step = integer_product(state[0], codes)
        return lstm_gates(w_x + product * (h_step * step) + both, state[1])

    return cell


@dynamic_lstm_layer.register_fake
def _fake_dynamic_lstm(  # noqa: PLR0913 - the signature of the operator
    x: Tensor,
    codes: Tensor,
    recurrent_codes: Tensor,
    steps: Tensor,
    recurrent_steps: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return *fake_layer(x, h0), x.new_empty(c0.shape)


def _in_onnx(op: Any) -> Callable[..., Any]:
    from onnxscript.values import Op, Opset  # noqa: PLC0415 - see LoweredOp.translation

    from fxq.quant.ops.onnx_terms import FLOAT, cast, direction_of, zeros_like  # noqa: PLC0415 - the same

    lstm = Op(Opset(_MICROSOFT, 1), "DynamicQuantizeLSTM", _schema())

    def translated(  # noqa: PLR0913 - the signature of the operator
        x: Any, codes: Any, recurrent: Any, steps: Any, recurrent_steps: Any, bias: Any, h0: Any, c0: Any
    ) -> Any:
        floats = [cast(op, value, FLOAT) for value in (x, bias, h0, c0, steps, recurrent_steps)]
        x_float, bias, h0_float, c0_float, steps, recurrent_steps = floats
        directions, _, gates = recurrent.shape
        outputs = lstm(
            x_float, codes, recurrent, bias, None, h0_float, c0_float, None, steps,
            zeros_like(op, steps), recurrent_steps, zeros_like(op, recurrent_steps),
            hidden_size=gates // 4, direction=direction_of(directions),
        )  # fmt: skip  # the operator's inputs, in its order
        return outputs if x.dtype == FLOAT else tuple(op.Cast(output, to=x.dtype) for output in outputs)

    return translated


def _schema() -> Any:
    """Return the operator as ONNX Runtime documents it (docs/ContribOperators.md); onnx does not know it."""
    from onnx.defs import OpSchema  # noqa: PLC0415 - see LoweredOp.translation

    inputs = {"X": "T", "W": "T2", "R": "T2", "B": "T", "sequence_lens": "T1", "initial_h": "T", "initial_c": "T"}
    inputs |= {"P": "T", "W_scale": "T", "W_zero_point": "T2", "R_scale": "T", "R_zero_point": "T2"}
    optional = OpSchema.FormalParameterOption.Optional
    return OpSchema(
        "DynamicQuantizeLSTM",
        _MICROSOFT,
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


DYNAMIC_LSTM_LAYER = torch.ops.fxq.dynamic_lstm_layer.default
ROWS = (LoweredOp(DYNAMIC_LSTM_LAYER, "dynamic", _in_onnx, stored=(1, 2, 3, 4), writes=("DynamicQuantizeLSTM",)),)
