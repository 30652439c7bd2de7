"""Normalizations written out over any dimension stay in float."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxq

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
SCALE = torch.linspace(0.5, 2, 4).reshape(4, 1, 1)


class Net(nn.Module):
    def __init__(self, norm: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), norm

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)))  # type: ignore[no-any-return]


def layer_norm_2d(x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-6)


def layer_norm_by_moments(x: Tensor) -> Tensor:
    mean, squares = x.sum((1, 2, 3), True) * (1 / 144), (x * x).sum((1, 2, 3), True) * (1 / 144)
    variance = torch.maximum(squares - mean * mean, torch.zeros_like(mean))
    return (x - mean.expand(variance.shape)) * ((variance + 1e-5).sqrt().reciprocal() * SCALE)


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "over channels": layer_norm_2d,
    "over positions": lambda x: (x - x.mean((2, 3), True)) * torch.rsqrt(x.var((2, 3), keepdim=True) + 1e-5),
    "by moments": layer_norm_by_moments,
    "by length": lambda x: x * ((x * x).sum(1, keepdim=True) + 1e-5).rsqrt(),
    "by the deviation": lambda x: (x - x.mean((1, 2, 3), True)) / (x.std((1, 2, 3), keepdim=True) + 1e-5),
    "root mean square": lambda x: x * (1 / ((x * x).mean((2, 3), True) + 1e-5).sqrt()),
    "weight demodulated": lambda x: x * ((x**2).mean((2, 3), keepdim=True) + 1e-5) ** -0.5,
}


@pytest.mark.parametrize("norm", FORMULAS.values(), ids=FORMULAS.keys())
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_no_step_is_quantized(norm: Callable[[Tensor], Tensor], target: str) -> None:
    gm = fxq.prepare(Net(norm).eval(), X, target)
    quantized = {node.all_input_nodes[0].name for node in gm.graph.nodes if "quantizer" in str(node.target)}
    [last] = [node for node in gm.graph.nodes if node.target == "last"]
    product = last.all_input_nodes[0].all_input_nodes[0]
    assert quantized - {"first", "last"} == {"x", product.name}
    text = str(fxq.explain(gm))
    assert "normalizes by '" in text


def test_products_with_other_means_are_quantized_as_before() -> None:
    gm = fxq.prepare(Net(lambda x: x * x.mean((2, 3), True).sigmoid()).eval(), X, "onnxruntime")
    assert "normalizes" not in str(fxq.explain(gm))
