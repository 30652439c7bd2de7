"""Layers that a module computes with weights of its own, and what else it computes around them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.spellings import assert_alike
from torch import Tensor, nn
from torch.nn import functional as F

import fxq

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Own(nn.Conv2d):
    """A subclass of a convolution whose forward is the user's own."""

    def __init__(self, how: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__(4, 4, 3, padding=1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


class Plain(nn.Module):
    """The same without the base class."""

    def __init__(self, how: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(4, 4, 3, 3)), nn.Parameter(torch.zeros(4))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


class WithChild(Plain):
    def __init__(self, how: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__(how)
        self.bn = nn.BatchNorm2d(4)


class Spelled(nn.Module):
    def __init__(self, how: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.conv, x)


def conv(layer: Any, x: Tensor) -> Tensor:
    return layer(x) if type(layer) is nn.Conv2d else F.conv2d(x, layer.weight, layer.bias, padding=1)


WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "relu": lambda layer, x: F.relu(conv(layer, x)),
    "relu_method": lambda layer, x: conv(layer, x).relu(),
    "before": lambda layer, x: conv(layer, F.relu(x)),
    "gelu": lambda layer, x: F.gelu(conv(layer, x)),
    "clamp": lambda layer, x: conv(layer, x).clamp(0, 6),
    "pool": lambda layer, x: F.max_pool2d(conv(layer, x), 3, 1, 1),
    "residual": lambda layer, x: F.relu(conv(layer, x) + x),
    "twice": lambda layer, x: conv(layer, F.relu(conv(layer, x))) + x,
    "gate": lambda layer, x: torch.sigmoid(conv(layer, x)) * x,
}


@pytest.mark.parametrize("kind", [Own, Plain, WithChild])
def test_a_module_with_a_weight_of_its_own_is_quantized_like_one_that_calls_a_layer(
    kind: Any,
) -> None:
    torch.manual_seed(0)
    spelled = nn.Sequential(nn.Conv2d(4, 4, 1), *map(Spelled, WAYS.values()))
    other = nn.Sequential(nn.Conv2d(4, 4, 1), *map(kind, WAYS.values()))
    other.load_state_dict({name.replace(".conv", ""): value for name, value in spelled.state_dict().items()}, False)
    assert_alike(spelled, other, X, ["tensorrt", "onnxruntime"])


class Padded(nn.Conv2d):
    """Pads so that strides need no care, as TensorFlow does: asks for the shape of its weight alone."""

    def forward(self, x: Tensor) -> Tensor:
        padding = []
        for size, kernel, stride in zip(x.shape[-2:], self.weight.shape[-2:], self.stride, strict=True):
            total = max((-(size // -stride) - 1) * stride + kernel - size, 0)
            padding = [total // 2, total - total // 2, *padding]
        return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride)


class AsksTransposed(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        size = self.weight.transpose(0, 1).size(0) - self.weight.size(2)
        return F.conv2d(F.pad(x, [size, 0, size, 0]), self.weight, self.bias, self.stride)


@pytest.mark.parametrize("kind", [Padded, AsksTransposed])
def test_a_weight_whose_shape_alone_is_read_is_quantized(kind: type[nn.Conv2d]) -> None:
    torch.manual_seed(0)
    other = nn.Sequential(kind(4, 4, 3, stride=2), nn.ReLU())
    padding = (0, 1, 0, 1) if kind is Padded else (1, 0, 1, 0)
    spelled = nn.Sequential(nn.ZeroPad2d(padding), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU())
    spelled[1].load_state_dict(other[0].state_dict())
    assert_alike(spelled, other, X, ["tensorrt"])


def test_a_layer_keeps_the_path_of_its_weight_and_what_stands_around_it_stands_beside() -> None:
    prepared = fxq.prepare(nn.Sequential(Own(WAYS["relu"])).eval(), X)
    paths = [node.path for node in fxq.explain(prepared).nodes]
    assert paths == ["0", "0_relu"]
    assert "0.weight" in prepared.state_dict()
