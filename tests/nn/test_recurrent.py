"""Quantized recurrent modules against torch.nn's, with every option."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fxq.errors import InputError
from fxq.nn import TensorQuantizer
from fxq.nn.recurrent import QuantGRU, QuantLSTM, QuantRNN
from fxq.nn.recurrent_cells import QuantGRUCell, QuantLSTMCell, QuantRNNCell

# torch's own, about its own kernel.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

# Our loop and torch's fused kernel add in another order.
TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}

OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bias": False},
    {"bidirectional": True, "batch_first": True},
    {"num_layers": 3, "bidirectional": True, "dropout": 0.5},
]
LAYERS = [(kind, options) for kind in (QuantLSTM, QuantGRU, QuantRNN) for options in OPTIONS]
LAYERS += [(QuantRNN, {"nonlinearity": "relu", "num_layers": 2})]
LAYERS += [(QuantLSTM, {"proj_size": 3}), (QuantLSTM, {"proj_size": 3, "num_layers": 2, "bidirectional": True})]
each_layer = pytest.mark.parametrize(
    ("kind", "options"), LAYERS, ids=[f"{kind.__name__}-{options}" for kind, options in LAYERS]
)


def switch_off(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, TensorQuantizer):
            part.disable()


def pair(kind: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    torch.manual_seed(0)
    original = kind.replaced_type()(5, 4, **options).eval()
    module = kind(5, 4, **options).eval()
    module.load_state_dict(original.state_dict())
    assert isinstance(module, type(original))
    return original, module


def sequences(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def hidden_state(module: Any, *batch: int) -> Any:
    layers = module.num_layers * (2 if module.bidirectional else 1)
    h = sequences(layers, *batch, module.proj_size or 4, seed=2)
    return (h, sequences(layers, *batch, 4, seed=3)) if isinstance(module, nn.LSTM) else h


def assert_same(actual: Any, expected: Any) -> None:
    if isinstance(expected, PackedSequence):
        assert all(torch.equal(a, b) for a, b in zip(actual[1:], expected[1:], strict=True) if isinstance(b, Tensor))
        actual, expected = actual.data, expected.data
    if isinstance(expected, tuple):
        for a, b in zip(actual, expected, strict=True):
            assert_same(a, b)
        return
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@each_layer
@pytest.mark.parametrize("is_batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("has_state", [True, False], ids=["with state", "without"])
def test_with_quantization_off_the_numbers_are_those_of_torch(kind, options, is_batched, has_state) -> None:
    original, module = pair(kind, options)
    switch_off(module)
    x = sequences(3, 3, 5) if is_batched else sequences(6, 5)
    arguments = (x, hidden_state(module, *([3] if is_batched else []))) if has_state else (x,)
    assert_same(module(*arguments), original(*arguments))


@each_layer
@pytest.mark.parametrize("is_sorted", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("has_state", [True, False], ids=["with state", "without"])
def test_packed_sequences_give_the_numbers_of_torch(kind, options, is_sorted, has_state) -> None:
    original, module = pair(kind, options)
    switch_off(module)
    lengths = [5, 3, 3, 1] if is_sorted else [3, 5, 1, 3]
    packed = pack_padded_sequence(sequences(5, 4, 5), lengths, enforce_sorted=is_sorted)
    arguments = (packed, hidden_state(module, 4)) if has_state else (packed,)
    assert_same(module(*arguments), original(*arguments))


@each_layer
def test_with_quantization_on_the_weights_are_on_their_grid(kind, options) -> None:
    original, module = pair(kind, options)
    x = sequences(3, 3, 5)
    outputs, _ = module(x)
    expected, _ = original(x)
    error = (outputs - expected).abs().max()
    assert 0 < error < 0.1  # 8 bits of values below 1, accumulated over three steps and up to three layers
    assert all(module._weight(name).unique().numel() <= 256 * 16 for name in module.weight_slots(module))
    names = {name for name, part in module.named_modules() if isinstance(part, TensorQuantizer)}
    assert {"_input_l0_quantizer", "_hidden_l0_quantizer", "_weight_ih_l0_quantizer"} <= names


def test_one_step_is_the_composition_of_fake_quantized_tensors() -> None:
    _, module = pair(QuantRNN, {})
    x = sequences(1, 3, 5)
    state = sequences(1, 3, 4, seed=4)
    quantize = TensorQuantizer()
    from_input = nn.functional.linear(quantize(x[0]), module._weight("weight_ih_l0"), module.bias_ih_l0)
    from_hidden = nn.functional.linear(quantize(state[0]), module._weight("weight_hh_l0"), module.bias_hh_l0)
    assert torch.equal(module(x, state)[0][0], torch.tanh(from_input + from_hidden))


def test_dropout_acts_between_layers_in_training_only() -> None:
    torch.manual_seed(0)
    module = QuantGRU(5, 4, num_layers=2, dropout=0.9)
    switch_off(module)
    x = sequences(3, 3, 5)
    (first, first_state), (second, second_state) = module(x), module(x)
    assert not torch.equal(first, second)
    assert torch.equal(first_state[0], second_state[0])  # what the first layer reads is never dropped
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])


@pytest.mark.parametrize("kind", [QuantLSTM, QuantGRU, QuantRNN])
def test_from_float_shares_parameters_and_trains(kind) -> None:
    original = kind.replaced_type()(5, 4)
    module = kind.from_float(original)
    assert module.weight_ih_l0 is original.weight_ih_l0
    module(sequences(3, 2, 5))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in original.parameters())


def test_wrong_shapes_get_the_message_of_torch() -> None:
    _, module = pair(QuantLSTM, {})
    with pytest.raises(RuntimeError, match=r"input.size\(-1\)"):
        module(sequences(3, 2, 7))
    with pytest.raises(RuntimeError, match="hidden"):
        module(sequences(3, 2, 5), hidden_state(module, 9))


CELLS = [
    (QuantLSTMCell, {}),
    (QuantGRUCell, {"bias": False}),
    (QuantRNNCell, {}),
    (QuantRNNCell, {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize(("kind", "options"), CELLS, ids=[f"{kind.__name__}-{options}" for kind, options in CELLS])
@pytest.mark.parametrize("batch", [(3,), ()], ids=["batched", "unbatched"])
@pytest.mark.parametrize("has_state", [True, False], ids=["with state", "without"])
def test_cells_give_the_numbers_of_torch(kind, options, batch, has_state) -> None:
    original, module = pair(kind, options)
    x = sequences(*batch, 5)
    state = sequences(*batch, 4, seed=2)
    arguments = (x, (state, state * 2) if kind is QuantLSTMCell else state) if has_state else (x,)
    quantized = module(*arguments)
    switch_off(module)
    assert_same(module(*arguments), original(*arguments))
    first = quantized[0] if isinstance(quantized, tuple) else quantized
    assert not torch.equal(first, original(*arguments)[0] if isinstance(quantized, tuple) else original(*arguments))


def test_cells_refuse_sequences() -> None:
    with pytest.raises(InputError, match="QuantLSTMCell takes"):
        QuantLSTMCell(5, 4)(sequences(2, 3, 5))
