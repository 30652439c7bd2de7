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

import torch
from torch import Tensor
from torch.nn import functional as F

from fxq.quant.dynamic_ops import integer_product

# Of what W x and the state (hidden, cell) are, the next state.
Cell = Callable[[Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]


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
    layer = _Layer(x, h0, c0)
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
    layer = _Layer(x, h0, h0)
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
    layer = _Layer(x, h0, h0)
    for direction in range(len(h0)):
        w, r, b = (part[direction].float() for part in (weight, recurrent, bias))
        layer.run(direction, F.linear(x.float(), w, b[: len(w)]), _rnn_cell(r, b[len(w) :], nonlinearity))
    return layer.results(x.dtype)[:2]


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
    """:func:`lstm_layer` on integers, as ONNX Runtime's DynamicQuantizeLSTM computes it.

    ``x`` is quantized as one tensor, all time steps together; the hidden state is quantized anew in each step, with
    the range of the whole batch. (ONNX Runtime with several threads takes the range over each thread's samples.)

    Args:
        codes, recurrent_codes: int8, (D, in, 4 H) and (D, H, 4 H): transposed, as that operator wants them.
        steps, recurrent_steps: (D,) or (D, 4 H).
    """
    layer = _Layer(x, h0, c0)
    for direction in range(len(h0)):
        product, x_step = integer_product(x, codes[direction].T)
        w_x = product * (x_step * steps[direction].float())
        recurrent = (recurrent_codes[direction].T, recurrent_steps[direction].float())
        layer.run(direction, w_x, _dynamic_lstm_cell(*recurrent, bias[direction].float()))
    return layer.results(x.dtype)


class _Layer:
    """Steps a cell through time, in both directions, and collects what it gives."""

    def __init__(self, x: Tensor, h0: Tensor, c0: Tensor) -> None:
        directions, batch, hidden = h0.shape
        self.start = h0.float(), c0.float()
        self.hidden = torch.empty(len(x), directions, batch, hidden, device=x.device)
        self.last_hidden, self.last_cell = torch.empty_like(self.start[0]), torch.empty_like(self.start[1])

    def run(self, direction: int, w_x: Tensor, cell: Cell) -> None:
        """Fill one direction; ``w_x``: (time, batch, G H), what the weight makes of the input, with its bias."""
        state = (self.start[0][direction], self.start[1][direction])
        times = range(len(w_x))
        for time in reversed(times) if direction else times:
            state = cell(w_x[time], state)
            self.hidden[time, direction] = state[0]
        self.last_hidden[direction], self.last_cell[direction] = state

    def results(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        return self.hidden.to(dtype), self.last_hidden.to(dtype), self.last_cell.to(dtype)


def _lstm_cell(recurrent: Tensor, bias: Tensor) -> Cell:
    def cell(w_x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return _lstm_gates(w_x + F.linear(state[0], recurrent, bias), state[1])

    return cell


def _dynamic_lstm_cell(codes: Tensor, step: Tensor, bias: Tensor) -> Cell:
    both = bias[: len(codes)] + bias[len(codes) :]

    def cell(w_x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        product, h_step = integer_product(state[0], codes)
        return _lstm_gates(w_x + product * (h_step * step) + both, state[1])

    return cell


def _lstm_gates(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    i, o, f, g = gates.chunk(4, dim=-1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


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


def _fake_layer(x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    directions, batch, hidden = h0.shape
    return x.new_empty((x.shape[0], directions, batch, hidden)), x.new_empty(h0.shape)


@lstm_layer.register_fake
def _fake_lstm(
    x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor, h0: Tensor, c0: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return *_fake_layer(x, h0), x.new_empty(c0.shape)


@gru_layer.register_fake
def _fake_gru(x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    return _fake_layer(x, h0)


@rnn_layer.register_fake
def _fake_rnn(
    x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor, h0: Tensor, nonlinearity: str
) -> tuple[Tensor, Tensor]:
    return _fake_layer(x, h0)


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
    return *_fake_layer(x, h0), x.new_empty(c0.shape)


LSTM_LAYER = torch.ops.fxq.lstm_layer.default
GRU_LAYER = torch.ops.fxq.gru_layer.default
RNN_LAYER = torch.ops.fxq.rnn_layer.default
DYNAMIC_LSTM_LAYER = torch.ops.fxq.dynamic_lstm_layer.default
