from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.spellings import assert_alike
from torch import Tensor, nn

from fxq.graph import graph_text
from fxq.graph.trace import trace
from fxq.testing import assert_rewrites
from fxq_passes import FoldAffine

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class FrozenBatchNorm(nn.Module):
    """As torchvision's detection models have it."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        w, b, rv, rm = (
            getattr(self, name).reshape(1, -1, 1, 1) for name in ("weight", "bias", "running_var", "running_mean")
        )
        scale = w * (rv + 1e-5).rsqrt()
        return x * scale + (b - rm * scale)  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = norm(), norm()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


def test_a_frozen_batch_norm_is_quantized_like_a_batch_norm() -> None:
    torch.manual_seed(0)
    frozen = nn.Sequential(Block(FrozenBatchNorm), Block(FrozenBatchNorm))
    usual = nn.Sequential(*(Block(lambda: nn.BatchNorm2d(4)) for _ in range(2)))
    usual.load_state_dict(frozen.state_dict(), strict=False)
    assert_alike(usual, frozen, X, ["tensorrt", "onnxruntime"])


class Behind(nn.Module):
    def __init__(self, layer: nn.Module, how: Callable[["Behind", Tensor], Tensor], size: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, self.how = layer, how
        self.gamma, self.other = nn.Parameter(torch.rand(size) + 0.5), nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, self.layer(x))


FOLDED: dict[str, tuple[nn.Module, Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "layer scale": (nn.Linear(6, 4), lambda m, x: x * m.gamma, (4,)),
    "first": (nn.Linear(6, 4, bias=False), lambda m, x: m.gamma + x, (1, 1, 1, 4)),
    "divided": (nn.Conv2d(4, 4, 1), lambda m, x: (x - 0.5 * m.gamma) / m.gamma, (4, 1, 1)),
    "transposed": (nn.ConvTranspose2d(4, 4, 2, groups=2), lambda m, x: x * m.gamma, (1, 4, 1, 1)),
    "one for all": (nn.Conv2d(4, 4, 1), lambda m, x: x * m.gamma, (1,)),
}


@pytest.mark.parametrize(("layer", "how", "size"), FOLDED.values(), ids=FOLDED)
def test_what_is_stored_for_each_channel_is_folded(layer: nn.Module, how: Any, size: tuple[int, ...]) -> None:
    kind = type(layer).__name__
    after = f"x = input\nlayer = {kind}[layer](x)\nreturn layer"
    assert_rewrites([FoldAffine()], model=Behind(layer, how, size), inputs=X, after=after)


LEFT: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "another axis": (lambda m, x: x * m.gamma.view(6, 1), "mul"),
    "two readers": (lambda m, x: x * m.gamma.view(6, 1, 1) + x, "mul"),
    "subtracted from": (lambda m, x: m.gamma.view(6, 1, 1) - x, "sub"),
}


@pytest.mark.parametrize(("how", "name"), LEFT.values(), ids=LEFT)
def test_anything_else_stays(how: Any, name: str) -> None:
    model = Behind(nn.Conv2d(4, 6, 1), how, (6,)).eval()
    text = graph_text(trace(model, (X,)))
    assert name in text
    assert_rewrites([FoldAffine()], model=model, inputs=X, after=text)


def test_without_a_batch_channels_come_first() -> None:
    image = X[0, :, :4, :4]  # as many rows as channels
    model = Behind(nn.Conv2d(4, 4, 1), lambda m, x: x * m.gamma, (4, 1)).eval()  # of rows
    assert_rewrites([FoldAffine()], model=model, inputs=image, after=graph_text(trace(model, (image,))))
    model = Behind(nn.Conv2d(4, 4, 1), lambda m, x: x * m.gamma, (4, 1, 1)).eval()
    after = "x = input\nlayer = Conv2d[layer](x)\nreturn layer"
    assert_rewrites([FoldAffine()], model=model, inputs=image, after=after)


def test_in_training_it_stays() -> None:
    after = "x = input\nlayer = Conv2d[layer](x)\ngamma = self.gamma\nmul = mul(layer, gamma)\nreturn mul"
    model = Behind(nn.Conv2d(4, 4, 1), lambda m, x: x * m.gamma, (4, 1, 1))
    assert_rewrites([FoldAffine()], model=model, inputs=X, after=after, qat=True)


def test_a_layer_that_is_called_twice_keeps_its_weight() -> None:
    class Twice(Behind):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.gamma + self.layer(x * 2)  # type: ignore[no-any-return]

    after = """
        x = input
        layer = Conv2d[layer](x)
        gamma = self.gamma
        mul = mul(layer, gamma)
        mul_1 = mul(x, 2)
        layer_1 = Conv2d[layer](mul_1)
        add = add(mul, layer_1)
        return add
    """
    record = assert_rewrites([FoldAffine()], model=Twice(nn.Conv2d(4, 4, 1), abs, (4, 1, 1)), inputs=X, after=after)
    assert record.skipped("mul")[0].text == "'layer' is also used elsewhere"
