"""Models that compute their weights: by hooks, by parametrizations, in their own forward."""

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.layers import ScaledStdConv2d, StdConv2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import fxq
from fxq.compare.quality import sqnr_db
from fxq.errors import InputError
from fxq.graph import fit_weights
from fxq.nn import computed_tensors
from fxq.state import require_state

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
CLOSE = 100.0  # dB: the converted model differs from the prepared one by rounding


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


def pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.4)
    prune.random_unstructured(layer, "weight", 0.2)
    return prune.l1_unstructured(layer, "bias", 0.5)  # type: ignore[no-any-return]


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def custom(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Scale())


KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "old weight_norm": old_weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "prune": pruned,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "custom": custom,
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def network(kind: Callable[[nn.Module], nn.Module], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        kind(nn.Conv2d(3, 8, 3)), nn.ReLU(), kind(nn.ConvTranspose2d(8, 4, 2)), nn.Flatten(), kind(nn.Linear(100, 5))
    ).eval()


def prepared_for_training(model: nn.Module, inputs: Tensor = X) -> torch.fx.GraphModule:
    prepared = fxq.prepare(model, inputs, qat=True, verify=True)
    fxq.calibrate(prepared, [inputs], progress=False)
    return prepared


def train(prepared: torch.fx.GraphModule, inputs: Tensor = X) -> Tensor:
    """Take two steps; return what the model makes of the inputs then."""
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    prepared.train()
    for _ in range(2):
        optimizer.zero_grad()
        (prepared(inputs) - 1).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        found: Tensor = prepared.eval()(inputs)
    return found


def sqnr(expected: Tensor, found: Tensor) -> float:
    ratio = sqnr_db([expected.detach()], [found.detach()])
    assert ratio is not None
    return ratio


@each_kind
def test_a_computed_weight_is_stored_and_quantized_like_any_other(
    kind: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    model = network(kind)
    expected, state = model(X), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    types, hooks = [type(part) for part in model], [dict(part._forward_pre_hooks) for part in model]
    prepared = fxq.prepare(model, X, verify=True)
    assert fxq.explain(prepared).counts["weight"] == 3
    assert not any(map(computed_tensors, prepared.modules()))
    why = fxq.explain(prepared)["0"].quantized[1].why
    assert why.startswith("its weight; weight computed by ")
    assert "0.weight" in prepared.state_dict()
    fxq.calibrate(prepared, [X], progress=False)
    converted = fxq.convert(prepared)
    assert sqnr(expected, converted(X)) > 25
    # The model itself is what it was: deep copies of a parametrized layer share its class.
    assert [type(part) for part in model] == types
    assert [dict(part._forward_pre_hooks) for part in model] == hooks
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model(X), expected)
    if kind is old_weight_norm:
        fxq.export_onnx(converted, tmp_path / "model.onnx")


@each_kind
def test_in_training_it_is_computed_in_each_call_and_what_is_converted_is_what_was_trained(
    kind: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    model = network(kind)
    prepared = prepared_for_training(model)
    assert fxq.explain(prepared).counts["weight"] == 3
    assert "in each call, to be trained" in fxq.explain(prepared)["0"].quantized[1].why
    assert {name for name in prepared.state_dict() if "quantizer" not in name} == set(model.state_dict())
    before = prepared(X)
    trained = train(prepared)
    assert sqnr(before, trained) < 60
    converted = fxq.convert(prepared)
    assert sqnr(trained, converted(X)) > CLOSE
    assert sqnr(trained, copy.deepcopy(prepared)(X)) > CLOSE
    resumed = prepared_for_training(network(kind, seed=1))
    resumed.train().load_state_dict(prepared.state_dict())
    assert sqnr(trained, fxq.convert(resumed)(X)) > CLOSE
    if kind is old_weight_norm:
        fxq.export_onnx(converted, tmp_path / "model.onnx")


def test_old_spectral_norm_improves_its_estimate_once_a_training_step_as_without_fxq() -> None:
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 6)))
    prepared = prepared_for_training(model.eval(), X)
    estimate = prepared.get_submodule("0").weight_u.clone()
    assert torch.equal(estimate, model[0].weight_u)
    model.train()(X)
    prepared.train()(X)
    assert torch.equal(prepared.get_submodule("0").weight_u, model[0].weight_u)
    assert not torch.equal(prepared.get_submodule("0").weight_u, estimate)


def test_pruned_weights_stay_zero() -> None:
    prepared = prepared_for_training(network(pruned))
    train(prepared)
    mask = prepared.state_dict()["0.weight_mask"]
    assert not fxq.convert(prepared).state_dict()["0.weight"][mask == 0].any()


class WeightTimesScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.rand(4, 1, 1, 1) + 0.5)
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias * 2)


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(6, 4), nn.Linear(6, 2, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + self.up.weight @ self.down.weight, self.base.bias)


class OwnLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


OWN: dict[str, Callable[[], nn.Module]] = {
    "weight times scale": WeightTimesScale,
    "low rank": LowRank,
    "standardized": lambda: nn.Sequential(StdConv2d(3, 4, 3), nn.ReLU(), StdConv2d(4, 4, 3)),
    "scaled and standardized": lambda: nn.Sequential(ScaledStdConv2d(3, 4, 3), nn.ReLU()),
    "parametrized": lambda: nn.Sequential(parametrizations.weight_norm(OwnLayer())),
    "with a hook": lambda: nn.Sequential(old_weight_norm(OwnLayer())),
    "the model itself": lambda: old_weight_norm(OwnLayer()),
}


@pytest.mark.filterwarnings("ignore:nothing was quantized", "ignore:there is nothing to calibrate")
@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_what_a_forward_computes_from_stored_tensors_is_quantized_and_in_training_float(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    expected = model(X)
    prepared = fxq.prepare(model, X, verify=True)
    layers = [node for node in fxq.explain(prepared).nodes if node.kind in ("conv", "linear")]
    assert layers
    assert all(any(tensor.role == "weight" for tensor in node.quantized) for node in layers)
    fxq.calibrate(prepared, [X], progress=False)
    assert sqnr(expected, fxq.convert(prepared)(X)) > 25
    trainable = prepared_for_training(model)
    functions = [node for node in fxq.explain(trainable).nodes if node.kind in ("conv2d", "linear")]
    assert functions
    assert all("in each call, to be trained" in node.reason for node in functions)
    trained = train(trainable)
    assert sqnr(expected, trained) < 60
    assert sqnr(trained, fxq.convert(trainable)(X)) > CLOSE


class Recurrent(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.lstm, self.linear = parametrizations.weight_norm(nn.LSTM(6, 4), name), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.lstm(x)[0])  # type: ignore[no-any-return]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2)
        parametrizations.weight_norm(self.attention.out_proj)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:nothing was quantized")
@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: Recurrent("weight_hh_l0"), "lstm"),
        (lambda: Recurrent("bias_hh_l0"), "lstm"),
        (Attending, "attention"),
    ],
    ids=["weight of an LSTM", "bias of an LSTM", "projection of attention"],
)
def test_layers_of_many_weights_are_quantized_and_in_training_float(make: Callable[[], nn.Module], path: str) -> None:
    torch.manual_seed(0)
    model, inputs = make().eval(), torch.randn(5, 3, 6)
    converted = fxq.convert(fxq.prepare(model, inputs, "dynamic"))
    assert fxq.explain(converted)[path].is_quantized
    assert sqnr(model(inputs), converted(inputs)) > 25
    prepared = fxq.prepare(model, inputs, "dynamic", qat=True)
    assert "which in training only" in fxq.explain(prepared)[path].reason
    trained = train(prepared, inputs)
    assert sqnr(trained, fxq.convert(prepared)(inputs)) > CLOSE
    assert sqnr(trained, copy.deepcopy(prepared)(inputs)) > CLOSE


def test_layers_that_share_a_stored_tensor_are_stored_each_for_itself() -> None:
    first, second = custom(nn.Linear(6, 6)), custom(nn.Linear(6, 6))
    second.parametrizations.weight.original = first.parametrizations.weight.original  # type: ignore[union-attr]
    model = nn.Sequential(first, nn.ReLU(), second, first).eval()
    converted = fxq.quantize(model, [X], progress=False)
    assert sqnr(model(X), converted(X)) > 25


def test_a_computed_bias_is_not_corrected() -> None:
    layer = parametrize.register_parametrization(nn.Linear(6, 6), "bias", Scale())
    prepared = fxq.prepare(nn.Sequential(layer).eval(), X, fxq.recipe("tensorrt").with_pass("correct_bias"), qat=True)
    fxq.calibrate(prepared, [X, X + 1], progress=False)
    reasons = [entry.text for entry in require_state(prepared, fxq.Stage.PREPARED, "a test").record.skipped("_0")]
    assert "its bias is computed in each call, to be trained" in reasons


def test_a_prepared_model_that_computes_weights_is_saved_as_a_state_dict() -> None:
    prepared = prepared_for_training(network(custom))
    with pytest.raises(InputError, match="computes weight in each call and cannot be pickled: save the state_dict"):
        pickle.dumps(prepared)


def test_quantized_by_hand_a_layer_computes_its_weight_too() -> None:
    layer = parametrizations.weight_norm(nn.Linear(6, 4))
    quantized = fxq.nn.QuantLinear.from_float(layer, input=None)
    fit_weights(quantized)
    before = quantized(X)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)  # type: ignore[union-attr, operator]
    fit_weights(quantized)
    torch.testing.assert_close(quantized(X) - layer.bias, 2 * (before - layer.bias))
    with pytest.raises(InputError, match=r"replaces exactly LSTM, got .*, which computes weight_hh_l0"):
        fxq.nn.QuantLSTM.from_float(parametrizations.weight_norm(nn.LSTM(6, 4), "weight_hh_l0"))
