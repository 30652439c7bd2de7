from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import fxq
from fxq.nn import computed_tensors
from fxq.testing import assert_rewrites
from fxq_passes import FoldWeights, FunctionalToModule

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """A linear layer whose weight ``how`` computes from the module."""

    def __init__(self, how: Callable[["Layer"], Tensor], calls: int = 1) -> None:
        super().__init__()
        self.how, self.calls = how, calls
        self.weight, self.scale = nn.Parameter(torch.rand(4, 4)), nn.Parameter(torch.rand(4, 1))
        self.register_buffer("seen", torch.ones(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.calls):
            x = F.linear(x, self.how(self))
        return x


def scaled(layer: Layer) -> Tensor:
    return layer.weight * layer.scale


def noisy(layer: Layer) -> Tensor:
    return layer.weight + torch.randn_like(layer.weight)


def counting(layer: Layer) -> Tensor:
    layer.seen.mul_(0.5)  # type: ignore[operator]
    return layer.weight * layer.seen  # type: ignore[operator]


def test_a_weight_computed_from_stored_tensors_is_stored_in_place_of_the_one_that_it_is_like() -> None:
    record = assert_rewrites(
        [FoldWeights()],
        model=nn.Sequential(Layer(scaled)),
        inputs=X,
        before="""
            input_1 = input
            _0_weight = self.0.weight
            _0_scale = self.0.scale
            mul = mul(_0_weight, _0_scale)
            linear = linear(input_1, mul)
            return linear
        """,
        after="""
            input_1 = input
            _0_weight_1 = self.0.weight
            linear = linear(input_1, _0_weight_1)
            return linear
        """,
    )
    assert [str(entry) for entry in record.of("fold_weights")] == [
        "fold_weights: 0: weight computed from 0.weight, 0.scale and stored"
    ]


def test_a_layer_that_is_called_twice_becomes_one_module() -> None:
    assert_rewrites(
        [FoldWeights(), FunctionalToModule()],
        model=nn.Sequential(Layer(scaled, calls=2)),
        inputs=X,
        after="""
            input_1 = input
            linear = Linear[0](input_1)
            linear_1 = Linear[0](linear)
            return linear_1
        """,
    )


class Doubled(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.weight * 2), self.weight * 3)


def test_two_weights_from_one_tensor_are_two() -> None:
    prepared = fxq.prepare(Doubled(scaled).eval(), X, verify=True)
    assert fxq.explain(prepared).counts["weight"] == 2


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (noisy, "its weight is computed in the graph and is random"),
        (counting, "its weight is computed in the graph and reads '0.seen', which the model changes"),
    ],
)
def test_a_weight_that_may_be_another_in_the_next_call_is_left_alone(how: Callable[[Layer], Tensor], why: str) -> None:
    model = nn.Sequential(Layer(how)).eval()
    prepared = fxq.prepare(nn.Sequential(model, nn.Linear(4, 4)).eval(), None)
    assert why.replace("'0.", "'0.0.") in fxq.explain(prepared)["linear"].reason


class ScaledBy(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * x.mean())


def test_a_weight_that_an_input_reaches_is_left_alone() -> None:
    record = assert_rewrites(
        [FoldWeights()],
        model=ScaledBy(scaled),
        inputs=X,
        after="""
            x = input
            weight = self.weight
            mean = .mean(x)
            mul = mul(weight, mean)
            linear = linear(x, mul)
            return linear
        """,
    )
    assert not record.entries


def test_a_dtype_that_an_input_is_asked_for_is_no_input() -> None:
    class Cast(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, (self.weight * self.scale).to(x.dtype))

    assert fxq.explain(fxq.prepare(Cast(scaled).eval(), X, verify=True)).counts["weight"] == 1


def test_in_training_it_stays_computed_and_says_why() -> None:
    record = assert_rewrites(
        [FoldWeights()],
        model=nn.Sequential(Layer(scaled)),
        inputs=X,
        qat=True,
        after="""
            input_1 = input
            _0_weight = self.0.weight
            _0_scale = self.0.scale
            mul = mul(_0_weight, _0_scale)
            linear = linear(input_1, mul)
            return linear
        """,
    )
    assert record.skipped("linear")[0].text.startswith("its weight is computed from 0.weight, 0.scale in each call")


def test_a_parametrization_of_a_layer_is_taken_off_and_read_elsewhere_too() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = parametrizations.weight_norm(nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.layer(x), self.layer.weight.t()) + self.layer.weight.mean()

    model = Tied().eval()
    prepared = fxq.prepare(model, X, verify=True)
    assert fxq.explain(prepared).counts["weight"] == 2
    assert not any(map(computed_tensors, prepared.modules()))
    assert parametrize.is_parametrized(model.layer, "weight")


def test_a_module_whose_stored_tensors_are_read_elsewhere_is_left_alone() -> None:
    class Penalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = parametrizations.weight_norm(nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.layer.parametrizations.weight.original0.mean()  # type: ignore[union-attr]

    model = nn.Sequential(Penalized(), nn.Linear(4, 4)).eval()
    prepared = fxq.prepare(model, X, verify=True)
    assert "also read outside" in fxq.explain(prepared)["0.layer"].reason
