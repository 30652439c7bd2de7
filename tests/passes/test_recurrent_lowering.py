"""LSTM, GRU, RNN and their cells become operators of ONNX on stored integer weights."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

import fxq
from fxq.graph import fit_weights, graph_text
from fxq.nn import Quantized, QuantLSTM

# torch's own, about its own kernel.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

# Two loops over a few steps that add in another order; one code more or less would be a hundred times that.
SAME = {"atol": 2e-6, "rtol": 1e-5}
DYNAMIC = fxq.QuantDescriptor(unsigned=True, symmetric=False, calibrator="dynamic")


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Layer(nn.Module):
    """A recurrent layer whose whole result is returned."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = kind(5, 4, **options)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


class WithState(Layer):
    def forward(self, x: Tensor, *state: Tensor) -> Any:
        return self.layer(x, state if isinstance(self.layer, nn.LSTM | nn.LSTMCell) else state[0])


def converted(model: nn.Module, inputs: tuple[Any, ...], recipe: str) -> tuple[GraphModule, GraphModule]:
    """Return the prepared model with fitted weights, and the converted one."""
    prepared = fxq.prepare(model.eval(), inputs, recipe)
    for module in prepared.modules():
        if isinstance(module, Quantized):
            fit_weights(module)
    return prepared, fxq.convert(prepared)


def assert_lowered_alike(model: nn.Module, inputs: tuple[Any, ...], recipe: str) -> GraphModule:
    prepared, lowered = converted(model, inputs, recipe)
    with torch.no_grad():
        expected, found = pytree.tree_leaves(prepared(*inputs)), pytree.tree_leaves(lowered(*inputs))
    assert len(expected) == len(found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **SAME)
    assert not any(isinstance(module, nn.RNNBase | nn.RNNCellBase) for module in lowered.modules())
    return lowered


OPTIONS: list[dict[str, Any]] = [
    {"num_layers": 2, "dropout": 0.5},
    {"bias": False, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]
KINDS = [(kind, "weight_only") for kind in (nn.LSTM, nn.GRU, nn.RNN)] + [(nn.LSTM, "dynamic"), (nn.GRU, "dynamic")]
each_kind = pytest.mark.parametrize(("kind", "recipe"), KINDS, ids=[f"{kind.__name__}-{name}" for kind, name in KINDS])


@each_kind
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_layer_computes_what_it_did(kind: Any, recipe: str, options: dict[str, Any]) -> None:
    assert_lowered_alike(Layer(kind, **options), (tensor(6, 3, 5),), recipe)


@each_kind
def test_an_unbatched_sequence_is_taken(kind: Any, recipe: str) -> None:
    assert_lowered_alike(Layer(kind, bidirectional=True, batch_first=True), (tensor(6, 5),), recipe)


@each_kind
@pytest.mark.parametrize("batch", [(3,), ()], ids=["batched", "unbatched"])
def test_given_initial_states_are_used(kind: Any, recipe: str, batch: tuple[int, ...]) -> None:
    states = [tensor(4, *batch, 4, seed=seed) for seed in (1, 2)][: 2 if kind is nn.LSTM else 1]
    model = WithState(kind, num_layers=2, bidirectional=True)
    lowered = assert_lowered_alike(model, (tensor(6, *batch, 5), *states), recipe)
    assert "zero_state" not in graph_text(lowered)


def test_relu_is_the_nonlinearity_where_it_was() -> None:
    lowered = assert_lowered_alike(Layer(nn.RNN, nonlinearity="relu"), (tensor(6, 3, 5) * 3,), "weight_only")
    assert "relu)" in graph_text(lowered)


CELLS = [(kind, name) for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell) for name in ("weight_only", "dynamic")]


@pytest.mark.parametrize(("kind", "recipe"), CELLS, ids=[f"{kind.__name__}-{name}" for kind, name in CELLS])
@pytest.mark.parametrize("batch", [(3,), ()], ids=["batched", "unbatched"])
def test_a_cell_is_written_out(kind: Any, recipe: str, batch: tuple[int, ...]) -> None:
    states = [tensor(*batch, 4, seed=seed) for seed in (1, 2)][: 2 if kind is nn.LSTMCell else 1]
    assert_lowered_alike(WithState(kind), (tensor(*batch, 5), *states), recipe)
    lowered = assert_lowered_alike(Layer(kind, bias=False), (tensor(*batch, 5),), recipe)
    assert graph_text(lowered).count("dynamic_linear(") == (2 if recipe == "dynamic" else 0)


def test_a_dynamic_lstm_is_one_operator_on_integers() -> None:
    _, lowered = converted(Layer(nn.LSTM), (tensor(6, 3, 5),), "dynamic")
    assert graph_text(lowered).splitlines()[1:] == [
        "layer_zero_state = self.layer.zero_state",
        "size = .size(x, 1)",
        "expand = .expand(layer_zero_state, -1, size, -1)",
        "layer_bias_l0 = self.layer.bias_l0",
        "layer_weight_ih_l0 = self.layer.weight_ih_l0",
        "layer_weight_ih_l0_scale = self.layer.weight_ih_l0_scale",
        "layer_weight_hh_l0 = self.layer.weight_hh_l0",
        "layer_weight_hh_l0_scale = self.layer.weight_hh_l0_scale",
        "dynamic_lstm_layer_default = dynamic_lstm_layer(x, layer_weight_ih_l0, layer_weight_hh_l0, "
        "layer_weight_ih_l0_scale, layer_weight_hh_l0_scale, layer_bias_l0, expand, expand)",
        "getitem = getitem(dynamic_lstm_layer_default, 0)",
        "getitem_1 = getitem(dynamic_lstm_layer_default, 1)",
        "getitem_2 = getitem(dynamic_lstm_layer_default, 2)",
        "transpose = .transpose(getitem, 1, 2)",
        "flatten = .flatten(transpose, 2)",
        "return (flatten, (getitem_1, getitem_2))",
    ]
    assert lowered.get_buffer("layer.weight_ih_l0").dtype == torch.int8
    assert lowered.get_buffer("layer.weight_ih_l0").shape == (1, 5, 16)


class Reader(nn.Module):
    """Uses results of recurrent layers in every way that a model may."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reads, self.first, self.second = reads, nn.LSTM(5, 4), nn.LSTM(5, 4)

    def forward(self, x: Tensor) -> Any:
        outputs, state = self.first(x)
        match self.reads:
            case "the last hidden state":
                return state[0][-1]
            case "the last cell state":
                return state[1].sum(0)
            case "the state as the next layer's":
                return self.second(x, state)[0]
            case "its parts":
                hidden, cell = state
                return self.second(x, (cell, hidden))
        return {"all": (outputs, state), "twice": [self.first(outputs.new_ones(2, 3, 5))[0]]}


@pytest.mark.parametrize("recipe", ["dynamic", "weight_only"])
@pytest.mark.parametrize(
    "reads",
    ["the last hidden state", "the last cell state", "the state as the next layer's", "its parts", "everything"],
)
def test_results_are_handed_to_all_that_read_them(reads: str, recipe: str) -> None:
    assert_lowered_alike(Reader(reads), (tensor(6, 3, 5),), recipe)


@pytest.mark.parametrize("recipe", ["dynamic", "weight_only"])
def test_what_reads_the_results_knows_their_shapes(recipe: str) -> None:
    class Attends(Layer):
        def __init__(self) -> None:
            super().__init__(nn.LSTM)
            self.attn = nn.MultiheadAttention(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)[0]
            attended: Tensor = self.attn(y, y, y)[0]
            return attended

    assert_lowered_alike(Attends(), (tensor(6, 3, 5),), recipe)


def test_a_projection_stays_in_float() -> None:
    prepared = fxq.prepare(Layer(nn.LSTM, proj_size=3).eval(), tensor(6, 3, 5), "dynamic")
    assert type(prepared.layer) is nn.LSTM
    assert "the recurrent operators of ONNX have no projection" in str(fxq.explain(prepared))


def test_calibrated_ranges_of_hidden_states_have_no_operator() -> None:
    model = nn.Sequential(QuantLSTM.from_float(nn.LSTM(5, 4), input=fxq.QuantDescriptor(amax=4.0))).eval()
    prepared = fxq.prepare(model, tensor(6, 3, 5))
    with pytest.raises(fxq.GraphError, match=r"'0' \(QuantLSTM\) quantizes its hidden state.*recipe \"dynamic\""):
        fxq.convert(prepared)


def test_a_hand_placed_dynamic_gru_is_refused_and_one_of_integer_weights_is_not() -> None:
    x = tensor(6, 3, 5)
    dynamic = nn.Sequential(fxq.nn.QuantGRU.from_float(nn.GRU(5, 4), input=DYNAMIC)).eval()
    with pytest.raises(fxq.GraphError, match="only an LSTM with 8-bit weights"):
        fxq.convert(fxq.prepare(dynamic, x, "dynamic"))
    weights = nn.Sequential(fxq.nn.QuantGRU.from_float(nn.GRU(5, 4))).eval()
    lowered = fxq.convert(fxq.prepare(weights, x))
    with torch.no_grad():
        torch.testing.assert_close(lowered(x)[0], weights(x)[0], **SAME)


@pytest.mark.parametrize(
    ("kind", "recipe", "operator"),
    [
        (nn.LSTM, "dynamic", "DynamicQuantizeLSTM"),
        (nn.LSTM, "weight_only", "LSTM"),
        (nn.GRU, "weight_only", "GRU"),
        (nn.RNN, "dynamic", "RNN"),
    ],
    ids=str,
)
def test_the_file_holds_the_operators_and_onnxruntime_agrees(kind, recipe, operator, tmp_path: Path) -> None:
    model = Layer(kind, num_layers=2, bidirectional=True, batch_first=True)
    _, lowered = converted(model, (tensor(3, 6, 5),), recipe)
    path = fxq.export_onnx(lowered, tmp_path / "model.onnx").path  # checked in ONNX Runtime
    graph = onnx.load(path).graph
    assert [node.op_type for node in graph.node].count(operator) == 2
    weights = [item for item in graph.initializer if ".weight" in item.name and "scale" not in item.name]
    stored = {item.data_type for item in weights if "zero_point" not in item.name}
    assert stored == {onnx.TensorProto.INT8}


def test_four_bit_weights_are_lowered_too() -> None:
    four = fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0))
    recipe = fxq.recipe("weight_only").replace(default=four)
    lowered = assert_lowered_alike(Layer(nn.LSTM, bidirectional=True), (tensor(6, 3, 5),), recipe)
    assert int(lowered.get_buffer("layer.weight_ih_l0").abs().max()) <= 8
