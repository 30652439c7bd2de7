"""With quantization on, recurrent modules and attention are their textbook formulas on fake-quantized tensors."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxq.nn import (
    QuantGRU,
    QuantGRUCell,
    QuantLSTM,
    QuantLSTMCell,
    QuantMultiheadAttention,
    QuantRNN,
    QuantRNNCell,
    TensorQuantizer,
)
from fxq.quant.descriptor import QuantDescriptor

# The same sums; only a projection is added to another in another order.
SAME = {"atol": 1e-6, "rtol": 1e-6}


def tensor(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fake(x: Tensor, axis: int | None = None) -> Tensor:
    return TensorQuantizer(QuantDescriptor(axis=axis))(x)


def gates(module: Any, suffix: str, x: Tensor, h: Tensor, parts: int) -> list[tuple[Tensor, Tensor]]:
    """Return what input and hidden state give for each gate; ``x`` is quantized already."""
    weights = [fake(getattr(module, f"weight_{kind}{suffix}"), 0) for kind in ("ih", "hh")]
    biases = [getattr(module, f"bias_{kind}{suffix}") for kind in ("ih", "hh")]
    both = [F.linear(x, weights[0], biases[0]), F.linear(fake(h), weights[1], biases[1])]
    return list(zip(both[0].chunk(parts, -1), both[1].chunk(parts, -1), strict=True))


def lstm_step(module: Any, suffix: str, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    i, f, g, o = (a + b for a, b in gates(module, suffix, x, state[0], 4))
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def gru_step(module: Any, suffix: str, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (r_x, r_h), (z_x, z_h), (n_x, n_h) = gates(module, suffix, x, state[0], 3)
    update = (z_x + z_h).sigmoid()
    new = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return ((1 - update) * new + update * state[0],)


def rnn_step(module: Any, suffix: str, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    ((from_x, from_h),) = gates(module, suffix, x, state[0], 1)
    return ((from_x + from_h).tanh(),)


RECURRENT = [
    (QuantLSTM, QuantLSTMCell, lstm_step),
    (QuantGRU, QuantGRUCell, gru_step),
    (QuantRNN, QuantRNNCell, rnn_step),
]
each_kind = pytest.mark.parametrize(
    ("kind", "cell", "step"), RECURRENT, ids=[kind.__name__ for kind, _, _ in RECURRENT]
)


@each_kind
def test_a_layer_quantizes_its_sequence_as_one_and_its_hidden_state_each_step(kind, cell, step) -> None:
    torch.manual_seed(0)
    module = kind(5, 4)
    x = tensor(3, 2, 5)
    outputs, _ = module(x)
    sequence = fake(x)  # one range for all steps; each step alone would have its own
    state = (torch.zeros(2, 4),) * (2 if kind is QuantLSTM else 1)
    for time in range(3):
        state = step(module, "_l0", sequence[time], state)
        torch.testing.assert_close(outputs[time], state[0], **SAME)


@each_kind
def test_a_cell_quantizes_input_and_hidden_state(kind, cell, step) -> None:
    torch.manual_seed(0)
    module = cell(5, 4)
    x, state = tensor(2, 5), (tensor(2, 4, seed=2), tensor(2, 4, seed=3))[: 2 if cell is QuantLSTMCell else 1]
    found = module(x, state if len(state) == 2 else state[0])
    expected = step(module, "", fake(x), state)
    for one, other in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        torch.testing.assert_close(one, other, **SAME)


def test_attention_quantizes_projections_and_both_products() -> None:
    torch.manual_seed(0)
    module = QuantMultiheadAttention(8, 2, batch_first=True).eval()
    torch.nn.init.normal_(module.in_proj_bias)
    x = tensor(3, 5, 8)
    found, weights = module(x, x, x, average_attn_weights=False)
    projected = F.linear(fake(x), fake(module.in_proj_weight, 0), module.in_proj_bias)
    query, key, value = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in projected.chunk(3, -1))
    scores = fake(query * math.sqrt(1 / 4)) @ fake(key).transpose(-2, -1)
    expected = torch.softmax(scores, -1)
    attended = (fake(expected) @ fake(value)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(weights, expected, **SAME)
    torch.testing.assert_close(
        found, F.linear(fake(attended), fake(module.out_proj.weight, 0), module.out_proj.bias), **SAME
    )
