"""Recurrent layers as operators: torch's own numbers, one ONNX node each, integers as ONNX Runtime counts them."""

import operator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hand_built import Builder, codes_of, kernels, run, stored
from torch import Tensor, fx, nn

from fxq.export import ExportOptions, export_onnx
from fxq.quant import DEQUANTIZE, DYNAMIC_LSTM_LAYER, GRU_LAYER, LSTM_LAYER, RNN_LAYER
from fxq.targets import FileRules

TIME, BATCH, IN, HIDDEN = 6, 3, 7, 5
# Where the gates of torch's weights go in ONNX: input, forget, cell, output -> input, output, forget, cell, and
# reset, update, new -> update, reset, hidden.
GATES = {nn.LSTM: (0, 3, 1, 2), nn.GRU: (1, 0, 2), nn.RNN: (0,)}
OPERATORS = {nn.LSTM: LSTM_LAYER, nn.GRU: GRU_LAYER, nn.RNN: RNN_LAYER}
KINDS = [(nn.LSTM, "tanh"), (nn.GRU, "tanh"), (nn.RNN, "tanh"), (nn.RNN, "relu")]
IDS = ["lstm", "gru", "rnn tanh", "rnn relu"]
STATIC = ExportOptions(dynamic_batch=False)


def layer_of(kind: type[nn.RNNBase], directions: int, nonlinearity: str = "tanh") -> nn.RNNBase:
    torch.manual_seed(0)
    extra = {"nonlinearity": nonlinearity} if kind is nn.RNN else {}
    return kind(IN, HIDDEN, bidirectional=directions == 2, **extra).eval()


def parameters_of(layer: nn.RNNBase) -> list[Tensor]:
    """Return weight, recurrent weight and bias in the layout of ONNX."""
    order, found = GATES[type(layer)], {}
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        directions = [getattr(layer, f"{name}_l0{suffix}") for suffix in ("", "_reverse")[: 1 + layer.bidirectional]]
        gates = [parameter.detach().chunk(len(order)) for parameter in directions]
        found[name] = torch.stack([torch.cat([chunks[gate] for gate in order]) for chunks in gates])
    return [found["weight_ih"], found["weight_hh"], torch.cat([found["bias_ih"], found["bias_hh"]], 1)]


def inputs_of(directions: int, states: int, hidden: int = HIDDEN, batch: int = BATCH) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(TIME, batch, IN), *[(directions, batch, hidden)] * states]
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def integer_parameters(layer: nn.RNNBase, per_channel: bool) -> list[Tensor]:
    """Return codes, recurrent codes, steps, recurrent steps and bias, the codes transposed."""
    weight, recurrent, bias = parameters_of(layer)
    steps = [w.abs().amax(2 if per_channel else (1, 2)) / 127 for w in (weight, recurrent)]
    spread = [step[:, :, None] if per_channel else step[:, None, None] for step in steps]
    codes = [codes_of(w, s).transpose(1, 2).contiguous() for w, s in zip((weight, recurrent), spread, strict=True)]
    return [*codes, *steps, bias]


def graph_of(op: object, stored_tensors: list[Tensor], states: int, *options: str) -> fx.GraphModule:
    build = Builder()
    inputs = [build.input(name) for name in ("x", "h0", "c0")[: 1 + states]]
    read = [build.read(f"rnn.p{index}", tensor) for index, tensor in enumerate(stored_tensors)]
    outputs = build.call(op, inputs[0], *read, *inputs[1:], *options)
    return build.finish(*(build.call(operator.getitem, outputs, index) for index in range(1 + states)))


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("kind", "nonlinearity"), KINDS, ids=IDS)
def test_a_layer_computes_what_torch_computes(kind: type[nn.RNNBase], nonlinearity: str, directions: int) -> None:
    layer = layer_of(kind, directions, nonlinearity)
    x, *states = inputs_of(directions, 2 if kind is nn.LSTM else 1)
    options = (nonlinearity,) if kind is nn.RNN else ()
    hidden, *last = OPERATORS[kind](x, *parameters_of(layer), *states, *options)
    expected, last_expected = layer(x, tuple(states) if kind is nn.LSTM else states[0])
    torch.testing.assert_close(hidden.permute(0, 2, 1, 3).reshape(TIME, BATCH, -1), expected)
    torch.testing.assert_close(tuple(last), last_expected if kind is nn.LSTM else (last_expected,))


def dequantized_lstm(layer: nn.RNNBase, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return the hidden states of one forward direction in float64, every range written out."""
    codes, recurrent, steps, recurrent_steps, bias = (p[0].double().numpy() for p in integer_parameters(layer, True))
    bias = bias[: 4 * HIDDEN] + bias[4 * HIDDEN :]
    hidden, x_values = [], rounded(x)
    for time in range(TIME):
        gates = x_values[time] @ (codes * steps) + rounded(h) @ (recurrent * recurrent_steps) + bias
        i, o, f, g = np.split(gates, 4, axis=-1)
        sigmoid = lambda value: 1 / (1 + np.exp(-value))  # noqa: E731
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        hidden.append(h)
    return np.stack(hidden)


def rounded(values: np.ndarray) -> np.ndarray:
    low, high = min(values.min(), 0), max(values.max(), 0)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    return (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step


def test_an_integer_lstm_quantizes_its_input_once_and_its_state_in_every_step() -> None:
    layer, (x, h0, c0) = layer_of(nn.LSTM, 1), inputs_of(1, 2)
    hidden, _, _ = DYNAMIC_LSTM_LAYER(x, *integer_parameters(layer, True), h0, c0)
    expected = dequantized_lstm(layer, x.double().numpy(), h0[0].double().numpy(), c0[0].double().numpy())
    # float32 against float64, no code of this seed falls to the other side.
    np.testing.assert_allclose(hidden[:, 0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("op", [LSTM_LAYER, GRU_LAYER, RNN_LAYER, DYNAMIC_LSTM_LAYER], ids=str)
def test_operators_keep_torchs_rules(op: torch._ops.OpOverload) -> None:
    kind = next((kind for kind, found in OPERATORS.items() if found is op), nn.LSTM)
    layer = layer_of(kind, 2)
    parameters = integer_parameters(layer, True) if op is DYNAMIC_LSTM_LAYER else parameters_of(layer)
    x, *states = inputs_of(2, 2 if kind is nn.LSTM else 1)
    torch.library.opcheck(op, (x, *parameters, *states, *(("tanh",) if op is RNN_LAYER else ())))


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("kind", "nonlinearity"), KINDS, ids=IDS)
def test_a_layer_is_one_node(tmp_path: Path, kind: type[nn.RNNBase], nonlinearity: str, directions: int) -> None:
    layer, states = layer_of(kind, directions, nonlinearity), 2 if kind is nn.LSTM else 1
    inputs, options = inputs_of(directions, states), (nonlinearity,) if kind is nn.RNN else ()
    gm = graph_of(OPERATORS[kind], parameters_of(layer), states, *options)
    path = export_onnx(gm, tmp_path / "model.onnx", inputs, STATIC).path
    assert kernels(path) == {kind.__name__: 1}
    for have, want in zip(run(path, *inputs), gm(*inputs), strict=True):
        # onnxruntime has its own approximation of sigmoid and tanh.
        np.testing.assert_allclose(have, want.numpy(), atol=1e-5)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
def test_an_integer_lstm_is_onnxruntimes_operator(tmp_path: Path, directions: int, per_channel: bool) -> None:
    parameters, inputs = integer_parameters(layer_of(nn.LSTM, directions), per_channel), inputs_of(directions, 2)
    gm = graph_of(DYNAMIC_LSTM_LAYER, parameters, 2)
    report = export_onnx(gm, tmp_path / "model.onnx", inputs, STATIC)
    assert report.dynamic_nodes == 1
    # Compared on one thread: several would quantize the states of their own samples, off by a tenth of an LSB.
    assert report.parity[0].max_lsb < 0.01
    model = onnx.load(report.path)
    assert {domain.domain: domain.version for domain in model.opset_import} == {"": 18, "com.microsoft": 1}
    assert kernels(report.path) == {"DynamicQuantizeLSTM": 1}
    assert stored(report.path)["rnn.p0"].data_type == onnx.TensorProto.INT8
    for have, want in zip(run(report.path, *inputs), gm(*inputs), strict=True):
        # One thread quantizes the states of all samples together, as the operator in torch does.
        np.testing.assert_allclose(have, want.numpy(), atol=1e-5)


def test_float16_runs_through_float32(tmp_path: Path) -> None:
    layer = layer_of(nn.LSTM, 1)
    *codes_and_steps, bias = integer_parameters(layer, True)
    inputs = tuple(value.half() for value in inputs_of(1, 2))
    gm = graph_of(DYNAMIC_LSTM_LAYER, [*codes_and_steps, bias.half()], 2)
    path = export_onnx(gm, tmp_path / "model.onnx", inputs, STATIC).path
    for have, want in zip(run(path, *inputs), gm(*inputs), strict=True):
        assert have.dtype == np.float16
        # The last bit of a float16 below 1.
        np.testing.assert_allclose(have, want.numpy(), atol=5e-4)


class BatchFirst(nn.Module):
    """An LSTM layer that makes its own first states, batch first, as lowered modules do."""

    def __init__(self) -> None:
        super().__init__()
        for index, tensor in enumerate(integer_parameters(layer_of(nn.LSTM, 1), True)):
            self.register_buffer(f"p{index}", tensor)

    def forward(self, x: Tensor) -> Tensor:
        zeros = x.new_zeros(1, x.shape[0], HIDDEN)
        return DYNAMIC_LSTM_LAYER(x.transpose(0, 1), self.p0, self.p1, self.p2, self.p3, self.p4, zeros, zeros)[0]


def test_an_integer_lstm_runs_for_any_batch(tmp_path: Path) -> None:
    gm = fx.symbolic_trace(BatchFirst())
    x = inputs_of(1, 0)[0].transpose(0, 1)
    path = export_onnx(gm, tmp_path / "model.onnx", x[:1].contiguous()).path
    np.testing.assert_allclose(run(path, x.contiguous())[0], gm(x).numpy(), atol=1e-5)


@pytest.mark.parametrize("fast", [True, False])
def test_stored_integers_of_a_float_layer_are_dequantized_when_the_file_is_loaded(tmp_path: Path, fast: bool) -> None:
    build, layer = Builder(), layer_of(nn.GRU, 1)
    x, h0 = build.input("x"), build.input("h0")
    weights = []
    for name, weight in zip(("weight", "recurrent"), parameters_of(layer)[:2], strict=True):
        steps = weight.abs().amax((0, 2)) / 127
        read = build.read(f"gru.{name}", codes_of(weight, steps[:, None])), build.read(f"gru.{name}_scale", steps)
        zero = build.read(f"gru.{name}_zero", torch.zeros(3 * HIDDEN, dtype=torch.int8))
        weights.append(build.call(DEQUANTIZE, *read, zero, 1, torch.float32))
    outputs = build.call(GRU_LAYER, x, *weights, build.read("gru.bias", parameters_of(layer)[2]), h0)
    gm, inputs = build.finish(build.call(operator.getitem, outputs, 0)), inputs_of(1, 1)
    options = ExportOptions(dynamic_batch=False, rules=FileRules(fast_weight_only=fast))
    path = export_onnx(gm, tmp_path / "model.onnx", inputs, options).path
    assert kernels(path)["DequantizeLinear"] == (0 if fast else 2)
    assert stored(path)["gru.weight"].data_type == onnx.TensorProto.INT8
    np.testing.assert_allclose(run(path, *inputs)[0], gm(*inputs).numpy(), atol=1e-5)
