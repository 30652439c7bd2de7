"""One layer of an LSTM, GRU or RNN as one operator of a lowered graph, in the layout and gate order of ONNX.

D is 1, or 2 for a bidirectional layer; H is the hidden size, G the number of gates (LSTM 4: input, output, forget,
cell; GRU 3: update, reset, hidden; RNN 1). Computed in float32:

``LSTM: c' = f * c + i * tanh(g)``, ``h' = o * tanh(c')``, with i, o, f = sigmoid(...)
``GRU:  h' = (1 - z) * tanh(W x + Wb + r * (R h + Rb)) + z * h`` (ONNX's linear_before_reset = 1, as torch does)
``RNN:  h' = tanh(W x + Wb + R h + Rb)``, or relu

They are custom operators, so that an exported layer is one LSTM, GRU or RNN node and not a loop. They have no gradient.
Importing this module registers them. Source: ONNX operators LSTM, GRU and RNN.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxq.quant.ops.lowered_op import LoweredOp
from fxq.quant.ops.recurrent_steps import Cell, SteppedLayer, fake_layer, lstm_gates


@torch.library.custom_op(
    "fxq::lstm_layer",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor recurrent, Tensor bias, Tensor h0, Tensor c0) -> (Tensor, Tensor, Tensor)",
)
def lstm_layer(
    x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor, h0: Tensor, c0: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the hidden states (time, D, batch, H), and the last hidden and cell states (D, batch, H).

    Args:
        x: (time, batch, in).
        weight, recurrent: (D, 4 H, in) and (D, 4 H, H), gates in the order input, output, forget, cell.
        bias: (D, 8 H), that of ``weight`` and then that of ``recurrent``.
        h0, c0: (D, batch, H).
    """
    layer = SteppedLayer(x, h0, c0)
    for direction in range(len(h0)):
        w, r, b = (part[direction].float() for part in (weight, recurrent, bias))
        layer.run(direction, F.linear(x.float(), w, b[: len(w)]), _lstm_cell(r, b[len(w) :]))
    return layer.results(x.dtype)


@torch.library.custom_op(
    "fxq::gru_layer",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor recurrent, Tensor bias, Tensor h0) -> (Tensor, Tensor)",
)
def gru_layer(x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden states and the last one; :func:`lstm_layer`, with the gates update, reset, hidden."""
    layer = SteppedLayer(x, h0, h0)
    for direction in range(len(h0)):
        w, r, b = (part[direction].float() for part in (weight, recurrent, bias))
        layer.run(direction, F.linear(x.float(), w, b[: len(w)]), _gru_cell(r, b[len(w) :]))
    return layer.results(x.dtype)[:2]


@torch.library.custom_op(
    "fxq::rnn_layer",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor recurrent, Tensor bias, Tensor h0, str nonlinearity) -> (Tensor, Tensor)",
)
def rnn_layer(
    x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor, h0: Tensor, nonlinearity: str
) -> tuple[Tensor, Tensor]:
    """Return the hidden states and the last one; :func:`lstm_layer`, with one gate. ``nonlinearity``: tanh or relu."""
    layer = SteppedLayer(x, h0, h0)
    for direction in range(len(h0)):
        w, r, b = (part[direction].float() for part in (weight, recurrent, bias))
        layer.run(direction, F.linear(x.float(), w, b[: len(w)]), _rnn_cell(r, b[len(w) :], nonlinearity))
    return layer.results(x.dtype)[:2]


def _lstm_cell(recurrent: Tensor, bias: Tensor) -> Cell:
    def cell(w_x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return lstm_gates(w_x + F.linear(state[0], recurrent, bias), state[1])

    return cell


def _gru_cell(recurrent: Tensor, bias: Tensor) -> Cell:
    def cell(w_x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z_x, r_x, h_x = w_x.chunk(3, dim=-1)
        z_h, r_h, h_h = F.linear(state[0], recurrent, bias).chunk(3, dim=-1)
        update = torch.sigmoid(z_x + z_h)
        hidden = (1 - update) * torch.tanh(h_x + torch.sigmoid(r_x + r_h) * h_h) + update * state[0]
        return hidden, hidden

    return cell


def _rnn_cell(recurrent: Tensor, bias: Tensor, nonlinearity: str) -> Cell:
    activation = torch.relu if nonlinearity == "relu" else torch.tanh

    def cell(w_x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden = activation(w_x + F.linear(state[0], recurrent, bias))
        return hidden, hidden

    return cell


@lstm_layer.register_fake
def _fake_lstm(
    x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor, h0: Tensor, c0: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return *fake_layer(x, h0), x.new_empty(c0.shape)


@gru_layer.register_fake
def _fake_gru(x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    return fake_layer(x, h0)


@rnn_layer.register_fake
def _fake_rnn(
    x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor, h0: Tensor, nonlinearity: str
) -> tuple[Tensor, Tensor]:
    return fake_layer(x, h0)


def _lstm_in_onnx(op: Any) -> Callable[..., Any]:
    def translated(x: Any, weight: Any, recurrent: Any, bias: Any, h0: Any, c0: Any) -> Any:
        return op.LSTM(x, weight, recurrent, bias, None, h0, c0, **_sizes(recurrent))

    return translated


def _gru_in_onnx(op: Any) -> Callable[..., Any]:
    def translated(x: Any, weight: Any, recurrent: Any, bias: Any, h0: Any) -> Any:
        return op.GRU(x, weight, recurrent, bias, None, h0, linear_before_reset=1, **_sizes(recurrent))

    return translated


def _rnn_in_onnx(op: Any) -> Callable[..., Any]:
    def translated(x: Any, weight: Any, recurrent: Any, bias: Any, h0: Any, nonlinearity: str) -> Any:
        activations = [nonlinearity.capitalize()] * recurrent.shape[0]
        return op.RNN(x, weight, recurrent, bias, None, h0, activations=activations, **_sizes(recurrent))

    return translated


def _sizes(recurrent: Any) -> dict[str, Any]:
    from fxq.quant.ops.onnx_terms import direction_of  # noqa: PLC0415 - see LoweredOp.translation

    directions, _, hidden = recurrent.shape
    return {"hidden_size": hidden, "direction": direction_of(directions)}


LSTM_LAYER = torch.ops.fxq.lstm_layer.default
GRU_LAYER = torch.ops.fxq.gru_layer.default
RNN_LAYER = torch.ops.fxq.rnn_layer.default
ROWS = (
    LoweredOp(LSTM_LAYER, "float", _lstm_in_onnx),
    LoweredOp(GRU_LAYER, "float", _gru_in_onnx),
    LoweredOp(RNN_LAYER, "float", _rnn_in_onnx),
)
