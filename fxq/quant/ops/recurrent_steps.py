"""What the operators of recurrent layers share: stepping a cell through time, and the gates of an LSTM."""

from collections.abc import Callable

import torch
from torch import Tensor

# Of what W x and the state (hidden, cell) are, the next state.
Cell = Callable[[Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]


class SteppedLayer:
    """Steps a cell through time, in both directions, and collects what it gives."""

    def __init__(self, x: Tensor, h0: Tensor, c0: Tensor) -> None:
        directions, batch, hidden = h0.shape
        self.start = h0.float(), c0.float()
        self.hidden = torch.empty(len(x), directions, batch, hidden, dtype=torch.float32, device=x.device)
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
        """Return all hidden states, and the last hidden and cell states."""
        return self.hidden.to(dtype), self.last_hidden.to(dtype), self.last_cell.to(dtype)


def lstm_gates(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next hidden and cell state of what the gates (input, output, forget, cell) are fed."""
    i, o, f, g = gates.chunk(4, dim=-1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def fake_layer(x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """Return empty tensors of the shapes that a layer returns."""
    directions, batch, hidden = h0.shape
    return x.new_empty((x.shape[0], directions, batch, hidden)), x.new_empty(h0.shape)
