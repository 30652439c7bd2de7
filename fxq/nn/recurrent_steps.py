"""One time step of LSTM, GRU and RNN, from the gates' two linear parts. Source: the formulas of torch.nn."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

# (h,) or, for LSTM, (h, c); each (batch, size).
State = tuple[Tensor, ...]


def _lstm_step(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    into, forget, cell, out = (from_input + from_hidden).chunk(4, 1)
    memory = torch.sigmoid(forget) * state[1] + torch.sigmoid(into) * torch.tanh(cell)
    return torch.sigmoid(out) * torch.tanh(memory), memory


def _gru_step(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    reset_x, update_x, new_x = from_input.chunk(3, 1)
    reset_h, update_h, new_h = from_hidden.chunk(3, 1)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return (new + torch.sigmoid(update_x + update_h) * (state[0] - new),)


def _tanh_step(from_input: Tensor, from_hidden: Tensor, _state: State) -> State:
    return (torch.tanh(from_input + from_hidden),)


def _relu_step(from_input: Tensor, from_hidden: Tensor, _state: State) -> State:
    return (torch.relu(from_input + from_hidden),)


STEPS: Mapping[str, Callable[[Tensor, Tensor, State], State]] = MappingProxyType(
    {"LSTM": _lstm_step, "GRU": _gru_step, "RNN_TANH": _tanh_step, "RNN_RELU": _relu_step}
)
