"""QuantLSTM and QuantLSTMCell of fxq.compat: torch's with quantization off, the original's grouping with it on."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fxq
from fxq.compat.pytorch_quantization import nn as quant_nn
from fxq.compat.pytorch_quantization.tensor_quant import QuantDescriptor
from fxq.errors import GraphError

# torch's kernel adds in another order.
TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"bias": False, "num_layers": 2},
    {"proj_size": 2, "bidirectional": True},
]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair(options: dict[str, Any]) -> tuple[nn.LSTM, quant_nn.QuantLSTM]:
    torch.manual_seed(0)
    original, module = nn.LSTM(3, 4, **options), quant_nn.QuantLSTM(3, 4, **options)
    module.load_state_dict(original.state_dict())
    return original, module


def switch_off(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, quant_nn.TensorQuantizer):
            part.disable()


def quantize(tensor: Tensor, per_row: bool = False) -> Tensor:
    amax = tensor.abs().amax(1, keepdim=True) if per_row else tensor.abs().max()
    return fxq.fake_tensor_quant(tensor, amax, narrow_range=False)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("options", OPTIONS, ids=[", ".join(each) or "plain" for each in OPTIONS])
@pytest.mark.parametrize("form", ["batch", "packed", "one sequence"])
def test_with_quantization_off_it_is_torchs_lstm(options: dict[str, Any], form: str) -> None:
    original, module = pair(options)
    switch_off(module)
    assert isinstance(module, nn.LSTM)
    x: Any = randn(5, 3) if form == "one sequence" else randn(2, 5, 3)
    if form == "packed":
        x = pack_padded_sequence(x if module.batch_first else x.transpose(0, 1), [5, 3], module.batch_first)

    (found, found_state), (expected, state) = module(x), original(x)

    if form == "packed":
        found, expected = pad_packed_sequence(found)[0], pad_packed_sequence(expected)[0]
    torch.testing.assert_close((found, *found_state), (expected, *state), **TOLERANCE)


def test_each_step_quantizes_input_and_hidden_state_as_one_tensor() -> None:
    _, module = pair({})
    x, h, c = randn(4, 2, 3), randn(1, 2, 4, seed=1), randn(1, 2, 4, seed=2)
    weight = quantize(torch.cat([module.weight_ih_l0, module.weight_hh_l0], 1), per_row=True)
    bias = module.bias_ih_l0 + module.bias_hh_l0
    hidden, cell, expected = h[0], c[0], []
    for step in x:
        gates = quantize(torch.cat([step, hidden], 1)) @ weight.T + bias
        into, forget, new, out = gates.chunk(4, 1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(into) * torch.tanh(new)
        hidden = torch.sigmoid(out) * torch.tanh(cell)
        expected.append(hidden)

    found, (last_hidden, last_cell) = module(x, (h, c))

    torch.testing.assert_close(found, torch.stack(expected), **TOLERANCE)
    torch.testing.assert_close((last_hidden[0], last_cell[0]), (hidden, cell), **TOLERANCE)


def test_the_cell_is_one_step_of_the_lstm() -> None:
    _, module = pair({})
    cell = quant_nn.LSTMCell(3, 4)
    cell.load_state_dict({name.removesuffix("_l0"): tensor for name, tensor in module.state_dict().items()})
    x, state = randn(2, 3), (randn(2, 4, seed=1), randn(2, 4, seed=2))

    _, (hidden, memory) = module(x[None], (state[0][None], state[1][None]))

    torch.testing.assert_close(cell(x, state), (hidden[0], memory[0]), **TOLERANCE)
    torch.testing.assert_close(cell(x[0])[0], cell(x[:1])[0][0], **TOLERANCE)
    assert isinstance(cell, nn.LSTMCell)
    assert {name for name, _ in cell.named_children()} == {"_input_quantizer", "_weight_quantizer"}


def test_quantizers_are_named_as_in_the_original() -> None:
    module = quant_nn.QuantLSTM(3, 4, num_layers=2, bidirectional=True, quant_desc_input=QuantDescriptor(num_bits=5))
    for quantizer in module.modules():
        if isinstance(quantizer, quant_nn.TensorQuantizer):
            quantizer.enable_calib()
    module(randn(6, 2, 3))
    for quantizer in module.modules():
        if isinstance(quantizer, quant_nn.TensorQuantizer):
            quantizer.load_calib_amax()

    shapes = {name: tuple(t.shape) for name, t in module.state_dict().items() if name.endswith("_amax")}
    assert shapes == {
        **{f"_input_quantizers.{index}._amax": () for index in range(4)},
        **{f"_weight_quantizers.{index}._amax": (16, 1) for index in range(4)},
    }
    assert module._input_quantizers[3].num_bits == 5


def test_prepare_leaves_it_whole_and_convert_says_what_to_use() -> None:
    _, module = pair({})
    for quantizer in module.modules():
        if isinstance(quantizer, quant_nn.TensorQuantizer):
            quantizer.enable_calib()
    x = randn(4, 2, 3)
    module(x)
    for quantizer in module.modules():
        if isinstance(quantizer, quant_nn.TensorQuantizer):
            quantizer.disable_calib()
            quantizer.load_calib_amax()

    prepared = fxq.prepare(nn.Sequential(module).eval(), x, recipe="tensorrt")

    torch.testing.assert_close(prepared(x)[0], module(x)[0], atol=0, rtol=0)
    with pytest.raises(GraphError, match="in ONNX only an LSTM"):
        fxq.convert(prepared)
