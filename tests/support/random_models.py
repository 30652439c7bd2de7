"""Small random networks, the same for the same seed: what models are made of, in orders that nobody would write."""

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS, SIZE, STEPS = 4, 8, 9
ACTIVATIONS = {
    "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish, "sigmoid": torch.sigmoid,
    "tanh": torch.tanh, "leaky": F.leaky_relu, "gelu": F.gelu,
}  # fmt: skip


class RandomNet(nn.Module):
    """A chain of random steps, each on one or two of the tensors so far; returns one to three tensors.

    Args:
        seed: decides everything, the weights too.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        choose = random.Random(seed)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleDict()
            self.steps = self._choose_steps(choose)
            self.head = nn.Linear(CHANNELS, 5) if choose.random() < 0.6 else None
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[operator]
                    module.running_var.uniform_(0.5, 2)  # type: ignore[operator]
        self.outputs = choose.choice([1, 1, 1, 2, 3])
        self.eval()

    def _choose_steps(self, choose: random.Random) -> list[tuple[str, int, int, Any]]:
        """Return (what, on which tensor, on which other, with what); tensor 0 is the input."""
        steps: list[tuple[str, int, int, Any]] = [("conv", 0, 0, self._layer("conv", 3, choose))]
        for index in range(1, STEPS):
            kind = choose.choice([*KINDS])
            # Mostly the newest, so that the graph is deep; the input has another number of channels.
            first = index if choose.random() < 0.6 else choose.randint(1, index)
            other = choose.randint(1, index)
            option: Any = choose.choice([0.5, -1.0, 2.0, 3])
            if kind in LAYERS:
                option = self._layer(kind, CHANNELS, choose)
            elif kind == "shared":
                option = choose.choice(
                    [name for name in self.layers if name.startswith("conv")][1:]
                    or [self._layer("conv", CHANNELS, choose)]
                )
            elif kind in ("activation", "dead"):
                option = choose.choice([*ACTIVATIONS])
            steps.append((kind, first, other, option))
        return steps

    def _layer(self, kind: str, channels: int, choose: random.Random) -> str:
        name = f"{kind}{len(self.layers)}"
        size = choose.choice([1, 3])
        self.layers[name] = {
            "conv": lambda: nn.Conv2d(channels, CHANNELS, size, padding=size // 2, bias=choose.random() < 0.7),
            "depthwise": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
            "bn": lambda: nn.BatchNorm2d(CHANNELS),
            "linear": lambda: nn.Linear(CHANNELS, CHANNELS, bias=choose.random() < 0.7),
            "max_pool": lambda: nn.MaxPool2d(3, 1, 1),
            "avg_pool": lambda: nn.AvgPool2d(3, 1, 1),
            "relu_in_place": lambda: nn.ReLU(inplace=True),
            "dropout": lambda: nn.Dropout(0.3),
        }[kind]()
        return name

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for kind, first, other, option in self.steps:
            values.append(KINDS[kind](self, values[first], values[other], option))
        found = values[-self.outputs :]
        if self.head is not None:
            found[-1] = self.head(found[-1].mean((2, 3)))
        return found[0] if len(found) == 1 else tuple(found)


def _dead(net: RandomNet, x: Tensor, _: Tensor, name: str) -> Tensor:
    ACTIVATIONS[name](x + 1)
    return x


def _linear(net: RandomNet, x: Tensor, _: Tensor, name: str) -> Tensor:
    return net.layers[name](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _call(net: RandomNet, x: Tensor, _: Tensor, name: str) -> Tensor:
    return net.layers[name](x)


def _concat(net: RandomNet, x: Tensor, y: Tensor, _: Any) -> Tensor:
    return torch.cat([x[:, : CHANNELS // 2], y[:, CHANNELS // 2 :]], 1)


LAYERS = ("conv", "depthwise", "bn", "linear", "max_pool", "avg_pool", "relu_in_place", "dropout")
KINDS = {
    **dict.fromkeys(LAYERS, _call),
    "linear": _linear,
    "shared": _call,
    "activation": lambda net, x, y, name: ACTIVATIONS[name](x),
    "add": lambda net, x, y, _: x + y,
    "sub": lambda net, x, y, _: x - y,
    "mul": lambda net, x, y, _: x * torch.sigmoid(y),
    "add_in_place": lambda net, x, y, _: x.clone().add_(y),
    # Of a copy: torch refuses to add a transposed view of the same memory.
    "add_in_place_of_all": lambda net, x, y, _: x.add_(y.clone()),
    "concat": _concat,
    "add_constant": lambda net, x, y, number: x + number,
    "mul_constant": lambda net, x, y, number: x * number,
    "reshape": lambda net, x, y, _: x.flatten(2).reshape(x.shape[0], CHANNELS, SIZE, -1),
    "transpose": lambda net, x, y, _: x.transpose(2, 3),
    "scale_by_mean": lambda net, x, y, _: x * torch.sigmoid(F.adaptive_avg_pool2d(y, 1)),
    "pad_and_pool": lambda net, x, y, _: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1),
    "dead": _dead,
}
