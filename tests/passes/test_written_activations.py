"""Formulas of activations, as models in the field write them: one module each, with the same numbers."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq.graph import kind

X = torch.linspace(-8, 8, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


class HardSigmoid(nn.Module):
    """As ports of MobileNetV3 have it."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + 3) / 6  # type: ignore[no-any-return]


class HardSwish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sigmoid = HardSigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.sigmoid(x)  # type: ignore[no-any-return]


class Stored(nn.Module):
    """Constants as tensors, as files of other tools have them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("three", torch.tensor(3.0))
        self.register_buffer("six", torch.tensor([6.0]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x + self.three, 0.0, 6.0) * x / self.six  # type: ignore[no-any-return,has-type]


FORMULAS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "silu": ("silu", lambda x: x * torch.sigmoid(x)),
    "silu_in_place": ("silu", lambda x: x.mul_(x.sigmoid())),
    "silu_turned": ("silu", lambda x: x.sigmoid().mul(x)),
    "hardsigmoid": ("hardsigmoid", lambda x: F.relu6(x + 3.0) / 6.0),
    "hardsigmoid_of_onnx": ("hardsigmoid", lambda x: (x * (1 / 6) + 0.5).clamp(0, 1)),
    "hardsigmoid_of_keras": ("hardsigmoid", lambda x: torch.clip(x / 6 + 0.5, 0.0, 1.0)),
    "hardswish": ("hardswish", lambda x: x * F.relu6(x + 3, inplace=True) / 6),
    "hardswish_factor": ("hardswish", lambda x: x * F.hardtanh(x + 3, 0.0, 6.0) * 0.16666667),
    "hardswish_gate": ("hardswish", lambda x: x * F.hardsigmoid(x)),
    "gelu": ("gelu", lambda x: 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))),
    "gelu_cdf": ("gelu", lambda x: x * (0.5 * (1.0 + (x * 0.7071067811865476).erf()))),
    "gelu_tanh": (
        "gelu",
        lambda x: 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))),
    ),
    "gelu_fast": ("gelu", lambda x: 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))),
    "mish": ("mish", lambda x: x * torch.tanh(F.softplus(x))),
}


class Net(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.activation = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), activation
        with torch.no_grad():
            self.first.weight.mul_(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x)))  # type: ignore[no-any-return]


def prepared(activation: Callable[[Tensor], Tensor], **options: bool) -> tuple[nn.Module, torch.fx.GraphModule]:
    model = Net(activation).eval()
    return model, fxq.prepare(model, X, "tensorrt", verify=True, **options)


def activations(gm: torch.fx.GraphModule) -> list[str]:
    """What stands between the convolutions, quantizers aside."""
    kinds = [kind(node) for node in gm.graph.nodes]
    return [word for word in kinds if word not in ("placeholder", "quantizer", "conv", "output")]


@pytest.mark.parametrize(("word", "formula"), FORMULAS.values(), ids=FORMULAS.keys())
def test_a_formula_becomes_its_module(word: str, formula: Callable[[Tensor], Tensor]) -> None:
    model, gm = prepared(formula)
    assert activations(gm) == [word]
    fxq.calibrate(gm, [X])
    for quantizer in gm.modules():
        if isinstance(quantizer, fxq.TensorQuantizer):
            quantizer.disable()
    # Rounded once or in steps: the erf of GELU differs by an ulp or two.
    torch.testing.assert_close(gm(X), model(X), rtol=1e-5, atol=1e-5)


class Unsqueezed(Stored):
    """A constant with the dimensions of what it is added to, as files of JAX have them."""

    def __init__(self) -> None:
        super().__init__()
        self.three = self.three.reshape(1, 1, 1, 1)


class Affine(Stored):
    """What it is applied to is scaled and shifted as well, and so is the result."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 1.5 + 0.5) * 2.0 - 1.0


@pytest.mark.parametrize("make", [HardSwish, Stored, Unsqueezed, Affine])
def test_modules_and_stored_constants_are_read_through(make: Callable[[], nn.Module]) -> None:
    _, gm = prepared(make())
    assert [word for word in activations(gm) if word not in ("mul", "add", "sub")] == ["hardswish"]


NEAR_MISSES: dict[str, Callable[[Tensor], Tensor]] = {
    "another_slope": lambda x: x * torch.sigmoid(1.702 * x),
    "another_tensor": lambda x: x * torch.sigmoid(x + 1),
    "another_bound": lambda x: x * F.relu6(x + 3) / 5,
    "another_shift": lambda x: x * F.relu6(x + 2) / 6,
    "another_half": lambda x: x * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "another_erf": lambda x: 0.5 * x * (1.0 + torch.erf(x)),
    "another_cube": lambda x: 0.5 * x * (1.0 + torch.tanh(0.79788456 * (x + 0.05 * torch.pow(x, 3)))),
    "another_softplus": lambda x: x * torch.tanh(F.softplus(x, beta=2)),
}


@pytest.mark.parametrize("formula", NEAR_MISSES.values(), ids=NEAR_MISSES.keys())
def test_what_is_close_stays_as_it_is(formula: Callable[[Tensor], Tensor]) -> None:
    _, gm = prepared(formula)
    assert not {"silu", "hardswish", "hardsigmoid", "gelu", "mish"} & set(activations(gm))


def test_what_something_else_reads_stays() -> None:
    def gated(x: Tensor) -> Tensor:
        gate = torch.sigmoid(x)
        return x * gate + gate

    _, gm = prepared(gated)
    assert activations(gm) == ["sigmoid", "silu", "add"]


def test_trained_constants_stay_in_training() -> None:
    class Trained(Stored):
        def __init__(self) -> None:
            super().__init__()
            del self.three
            self.three = nn.Parameter(torch.tensor(3.0))

    _, gm = prepared(Trained(), qat=True)
    assert "three" in "".join(name for name, _ in gm.named_parameters())
    assert "hardswish" not in activations(gm)
