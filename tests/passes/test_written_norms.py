"""Normalizations that a model writes out become nn.RMSNorm and nn.LayerNorm."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.graph.float_model import in_float

X = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
Formula = Callable[[Any, Tensor], Tensor]


class Norm(nn.Module):
    """A formula of the input, with a scale and a shift at hand."""

    def __init__(self, formula: Formula) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.scale = nn.Parameter(torch.rand(8, generator=generator) + 0.5)
        self.shift = nn.Parameter(torch.rand(8, generator=generator))
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(self, x)


class Net(nn.Module):
    def __init__(self, formula: Formula) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.fc = Norm(formula), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x))  # type: ignore[no-any-return]


def prepared(formula: Formula, recipe: str = "onnxruntime", qat: bool = False) -> tuple[nn.Module, GraphModule]:
    model = Net(formula).eval()
    return model, fxq.prepare(model, X, recipe, qat=qat, verify=not qat)


def norms(gm: GraphModule) -> list[Any]:
    return [module for module in gm.modules() if isinstance(module, nn.LayerNorm | nn.RMSNorm)]


def mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)


def centered(x: Tensor) -> Tensor:
    return x - x.mean(dim=-1, keepdim=True)


FORMULAS: dict[str, tuple[Formula, type[nn.Module], tuple[str, ...]]] = {
    "llama": (
        lambda m, x: m.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)), nn.RMSNorm, ("weight",),
    ),
    "a quotient": (lambda m, x: x / torch.sqrt(mean(x * x) + 1e-6) * m.scale, nn.RMSNorm, ("weight",)),
    "powers": (lambda m, x: x * (1e-6 + mean(torch.square(x))) ** -0.5, nn.RMSNorm, ()),
    "a shift of no root mean square": (
        lambda m, x: x / (mean(x**2) + 1e-5).sqrt() * m.scale + m.shift, nn.RMSNorm, ("weight",),
    ),
    "layer norm": (
        lambda m, x: centered(x) * torch.rsqrt(mean(centered(x) ** 2) + 1e-5) * m.scale + m.shift,
        nn.LayerNorm, ("weight", "bias"),
    ),
    "layer norm by steps": (
        lambda m, x: m.scale * ((c := centered(x)) / torch.sqrt(c.pow(2).mean(2, keepdim=True) + 1e-5)) + m.shift,
        nn.LayerNorm, ("weight", "bias"),
    ),
    "variance": (
        lambda m, x: centered(x) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * m.scale,
        nn.LayerNorm, ("weight",),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("formula", "kind", "names"), FORMULAS.values(), ids=FORMULAS.keys())
def test_a_formula_becomes_its_module(formula: Formula, kind: type[nn.Module], names: tuple[str, ...]) -> None:
    model, gm = prepared(formula)
    [norm] = norms(gm)
    assert type(norm) is kind
    assert tuple(name for name, _ in norm.named_parameters()) == names
    with torch.no_grad():
        fxq.calibrate(gm, [X], progress=False)
        with in_float(gm):
            # Products are taken in another order: a few units in the last place.
            torch.testing.assert_close(gm(X), model(X), rtol=1e-5, atol=1e-5)


OTHERS: dict[str, Formula] = {
    "another dimension": lambda m, x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "another power": lambda m, x: x * torch.rsqrt(mean(x.pow(4)) + 1e-6),
    "another tensor": lambda m, x: x * torch.rsqrt(mean(x.sin() ** 2) + 1e-6),
    "eps outside": lambda m, x: centered(x) / (x.var(-1, keepdim=True, unbiased=False).sqrt() + 1e-5),
    "an unbiased variance": lambda m, x: centered(x) / (x.var(-1, keepdim=True) + 1e-5).sqrt(),
    "the root of x": lambda m, x: x * torch.sqrt(mean(x * x) + 1e-6),
    "another mean": lambda m, x: (x - x.mean(1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt(),
}


@pytest.mark.parametrize("formula", OTHERS.values(), ids=OTHERS.keys())
def test_what_only_looks_like_one_stays(formula: Formula) -> None:
    assert norms(prepared(formula)[1]) == []


def test_parameters_keep_their_paths_and_are_trained() -> None:
    _, gm = prepared(FORMULAS["llama"][0], qat=True)
    gm.train()(X).sum().backward()
    assert gm.get_parameter("norm.rmsnorm.weight").grad is not None


def test_nothing_between_its_steps_is_quantized() -> None:
    gm = prepared(FORMULAS["llama"][0])[1]
    quantizers = [node.name for node in gm.graph.nodes if "quantizer" in str(node.target)]
    assert quantizers == ["fc_input_quantizer"]
