"""What is under a root, in a logarithm or divides stays in float: few bits keep nothing of what is small."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import fxq

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 6)


class Net(nn.Module):
    def __init__(self, compute: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.compute = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 4, 1), compute

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.compute(x[:, :4], x[:, 4:]))  # type: ignore[no-any-return]


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "magnitude": lambda re, im: (re**2 + im * im).sqrt(),
    "decibels": lambda re, im: torch.log10((re * re + im * im).clamp(min=1e-4)) * 10.0,
    "compressed": lambda re, im: (re * re + im * im) ** 0.3,
    "divisor": lambda re, im: re / (im * im + im.abs().mean((2, 3), True)),
    "reciprocal": lambda re, im: (re * re + im * im + 1.0).reciprocal(),
}


def quantizers(gm: fx.GraphModule) -> set[str]:
    return {str(node.target) for node in gm.graph.nodes if "quantizer" in str(node.target)}


@pytest.mark.parametrize("compute", FORMULAS.values(), ids=FORMULAS.keys())
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_no_step_to_it_is_quantized(compute: Callable[[Tensor, Tensor], Tensor], target: str) -> None:
    gm = fxq.prepare(Net(compute).eval(), X, target)
    assert not {
        name for name in quantizers(gm) if name.startswith(("add", "mul"))
    }  # they have the name of their reader
    assert "relative size" in str(fxq.explain(gm)).replace("\n", " ")


def test_what_something_else_reads_too_is_quantized() -> None:
    gm = fxq.prepare(Net(lambda re, im: (total := re + im) + total.abs().sqrt()).eval(), X, "onnxruntime")
    assert "add_output_quantizer" in quantizers(gm)


def test_a_dividend_is_quantized() -> None:
    gm = fxq.prepare(Net(lambda re, im: (re + im) / 3.0).eval(), X, "onnxruntime")
    assert "relative" not in str(fxq.explain(gm))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_spectrum_keeps_what_is_small(target: str) -> None:
    """With the sum of squares in 8 bits, less than 19 dB were left of this one."""
    model = Net(FORMULAS["magnitude"]).eval()
    converted = fxq.quantize(model, [X], fxq.recipe(target))
    with torch.no_grad():
        want = model(X)
        error = want - converted(X)
    assert 20 * torch.log10(want.norm() / error.norm()) > 30
