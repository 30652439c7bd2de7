"""prepare compares the traced graph with the model itself on the example inputs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def block() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 4)).eval()


def double(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2


class AsksForTruth(nn.Module):
    """Computes something else while it is traced: a proxy is not the object True."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if (x.shape[0] > 0) is True else x


class Returns(nn.Module):
    """Returns what ``function`` makes of the input."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Counts(nn.Module):
    """Writes into its buffer and its input, and uses both."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.count.add_(1)
        x.mul_(2)
        return x + y + self.count


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


@pytest.mark.parametrize("verify", [True, False], ids=["verify", "without"])
def test_a_hook_around_a_forward_that_tracing_replaces_is_no_difference(verify: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    model[0].register_forward_hook(double)
    fxq.prepare(model, X[None], verify=verify)


def test_hooks_that_the_graph_holds_are_no_difference() -> None:
    model = block()
    model[0].register_forward_hook(double)
    model[1].register_forward_hook(double)
    recipe = fxq.recipe("tensorrt").with_rules(("*", None))
    torch.testing.assert_close(fxq.prepare(model, X, recipe, verify=True)(X), model(X))


def test_a_test_that_goes_another_way_while_tracing_is_found() -> None:
    with pytest.raises(fxq.TraceError, match=r"such as `x is True`.*leaf_modules"):
        fxq.prepare(nn.Sequential(AsksForTruth()).eval(), X)


def test_the_model_named_as_a_leaf_is_traced_rightly() -> None:
    recipe = fxq.recipe("tensorrt").replace(leaf_modules=("0",))
    prepared = fxq.prepare(nn.Sequential(AsksForTruth(), nn.Linear(8, 4)).eval(), X, recipe)
    assert next(node.target for node in prepared.graph.nodes if node.op == "call_module") == "0"


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: {"a": x, "b": (x + 1, x.shape[0], None, "text")},
        lambda self, x: x / (x - x),
        lambda self, x: torch.nn.functional.dropout(x, 0.5, training=True),
        lambda self, x: x[:0],
    ],
    ids=["nested, with what is no tensor", "nan", "random in evaluation", "empty"],
)
@pytest.mark.filterwarnings("ignore:the model draws random numbers")
def test_models_that_are_hard_to_compare_are_equal_to_themselves(function: Any) -> None:
    fxq.prepare(Returns(function).eval(), X, verify=True)


def test_random_numbers_are_the_same_in_both_runs_and_the_users_go_on_as_before() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="draws random numbers"):
        fxq.prepare(Noisy().eval(), X, verify=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_model_writes_is_written_once_and_not_into_the_users_tensors() -> None:
    model, x = Counts().eval(), X.clone()
    prepared = fxq.prepare(model, (x, x))  # one tensor twice: the second is written too
    fxq.prepare(model, (x, X), verify=True)
    assert torch.equal(x, X)
    assert model.count == prepared.count == 0
    torch.testing.assert_close(prepared(X.clone(), X), model(X.clone(), X))


def test_padded_positions_which_torch_fills_with_zeros_on_its_fused_path_are_no_difference() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    padding = torch.tensor([[False, False, True], [False, True, True]])
    fxq.prepare(nn.TransformerEncoder(layer, 2).eval(), (torch.randn(2, 3, 8), None, padding), verify=True)
    assert torch.backends.mha.get_fastpath_enabled()


def test_example_inputs_that_the_model_traces_but_does_not_run_on_are_an_error_with_the_cure() -> None:
    with pytest.raises(fxq.InputError, match=r"fails on the example inputs: IndexError.* for which model"):
        fxq.prepare(nn.Sequential(nn.Embedding(4, 8)).eval(), torch.tensor([[7]]))


def test_quantizers_placed_by_hand_do_not_take_the_example_inputs_for_data() -> None:
    quantizer = fxq.TensorQuantizer(if_calib=True)
    prepared = fxq.prepare(nn.Sequential(quantizer).eval(), X, verify=True)
    kept = prepared.get_submodule("0")
    assert isinstance(kept, fxq.TensorQuantizer)
    assert kept.is_calib_enabled
    assert kept.compute_calib_range() is None


class Remembers(nn.Module):
    """Keeps what it computed, under ``_last``; a counter and a cache beside make no difference."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls, self._last = nn.Linear(4, 4), 0, 0.0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.add_(1)
        return self.linear(x) + self._last


class Adds(Remembers):
    def forward(self, x: Tensor) -> Tensor:
        self._last = self._last + 1.0
        return super().forward(x)


def test_what_a_call_leaves_to_the_next_is_named_where_that_makes_a_difference() -> None:
    x = torch.randn(2, 4)
    fxq.prepare(Remembers().eval(), x)
    model = Adds().eval()
    with pytest.warns(UserWarning, match=r"a second call .* for what the first left in .*'_last'"):
        fxq.prepare(model, x)
    assert (model.calls, model._last, float(model.seen)) == (0, 0.0, 0.0)


class GoesOn(Remembers):
    """Goes on from the tensor that the last call left, as streaming recurrent networks do."""

    def __init__(self) -> None:
        super().__init__()
        self._last = torch.ones(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        self._last = super().forward(x).tanh()
        return self._last


class GoesOnInPlace(Remembers):
    def forward(self, x: Tensor) -> Tensor:
        return self.seen.add_(super().forward(x).sum()).clone()


def test_a_tensor_that_forward_assigns_is_what_it_was_before() -> None:
    model, x = GoesOn().eval(), torch.randn(2, 4)
    before = model._last
    with pytest.warns(UserWarning, match=r"a second call .* for what the first left in .*'_last'"):
        prepared = fxq.prepare(model, x)
    assert model._last is before
    for quantizer in prepared.modules():
        if isinstance(quantizer, fxq.TensorQuantizer):
            quantizer.disable()
    with torch.no_grad():
        torch.testing.assert_close(prepared(x), (model.linear(x) + 1).tanh(), rtol=0, atol=1e-6)


def test_a_buffer_that_a_call_leaves_to_the_next_is_refused_where_calibration_went_on() -> None:
    model, x = GoesOnInPlace().eval(), torch.randn(2, 4)
    with pytest.warns(UserWarning, match="'calls'"):
        prepared = fxq.prepare(model, x)
    fxq.calibrate(prepared, [x, x])
    with pytest.raises(fxq.TraceError, match=r"a second call of the model .* left in the buffer 'seen', and calibr"):
        fxq.convert(prepared)
    assert float(model.seen) == 0


class Sparse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to_sparse()


def test_a_sparse_output_is_refused_by_name() -> None:
    with pytest.raises(fxq.TraceError, match=r"returns 'output' as a tensor of layout torch.sparse_coo"):
        fxq.prepare(Sparse().eval(), X)
