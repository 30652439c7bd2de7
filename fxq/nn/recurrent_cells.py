"""Quantized LSTMCell, GRUCell and RNNCell: input, hidden state and both weights are quantized, the gates are not."""

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fxq.errors import InputError
from fxq.nn.quantized_layer import ManyQuantized
from fxq.nn.recurrent_steps import STEPS, State


class _QuantCell(ManyQuantized, nn.RNNCellBase):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Return the new hidden state, for LSTM (hidden, cell); batched or not, as the float module does."""
        if input.dim() not in (1, 2):
            raise InputError(f"{type(self).__name__} takes (features,) or (batch, features), got {tuple(input.shape)}")
        is_batched = input.dim() == 2
        rows = input if is_batched else input.unsqueeze(0)
        state = self._state(rows, hx, is_batched)
        parts = [
            functional.linear(self._quantized("input", rows), self._weight("weight_ih"), self.bias_ih),
            functional.linear(self._quantized("hidden", state[0]), self._weight("weight_hh"), self.bias_hh),
        ]
        new = STEPS[self._mode()](parts[0], parts[1], state)
        new = new if is_batched else tuple(tensor.squeeze(0) for tensor in new)
        return new if len(new) == 2 else new[0]

    def _state(self, rows: Tensor, hx: Any, is_batched: bool) -> State:
        if hx is None:
            zeros = rows.new_zeros(rows.shape[0], self.hidden_size)
            return (zeros, zeros) if self._mode() == "LSTM" else (zeros,)
        state = hx if isinstance(hx, tuple | list) else (hx,)
        return tuple(tensor if is_batched else tensor.unsqueeze(0) for tensor in state)

    @abstractmethod
    def _mode(self) -> str:
        """Return the cell as torch names it: LSTM, GRU, RNN_TANH or RNN_RELU."""

    @classmethod
    def activation_slots(cls, module: nn.Module) -> list[str]:
        """Return the input and the hidden state."""
        return ["input", "hidden"]

    @classmethod
    def weight_slots(cls, module: nn.Module) -> list[str]:
        """Return the weights of both."""
        return ["weight_ih", "weight_hh"]


class QuantLSTMCell(_QuantCell, nn.LSTMCell):
    """torch.nn.LSTMCell with quantized input, hidden state and weights."""

    def _mode(self) -> str:
        return "LSTM"


class QuantGRUCell(_QuantCell, nn.GRUCell):
    """torch.nn.GRUCell with quantized input, hidden state and weights."""

    def _mode(self) -> str:
        return "GRU"


class QuantRNNCell(_QuantCell, nn.RNNCell):
    """torch.nn.RNNCell with quantized input, hidden state and weights."""

    def _mode(self) -> str:
        return f"RNN_{self.nonlinearity.upper()}"
