"""A chain of layers for tune, with times that are computed."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.runtimes import Latency, OpTime
from fxq.tuning.building import Built, FloatRules
from fxq.tuning.report import Tuned

# What a layer takes in integers and in float, in milliseconds, and each conversion between them.
SLOW_IN_INTEGERS = {"a": (1.0, 2.0), "b": (6.0, 2.0), "c": (1.0, 2.0), "d": (1.0, 2.0)}
FAST_IN_FLOAT = dict.fromkeys("abcd", (2.0, 1.0))
CONVERSION = 0.5
X = torch.randn(1, 64, 2, 2, generator=torch.Generator().manual_seed(3))


class Chain(nn.Module):
    """Four convolutions, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(64, 64, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x).relu()).relu()).relu())


class Builder:
    """Makes no files: a path is named after what is in float."""

    def __init__(self) -> None:
        self.prepared = fxq.prepare(Chain().eval(), X, "onnxruntime")

    def candidate(self, rules: FloatRules) -> tuple[GraphModule, Path]:
        return self.prepared, Path("_" + "".join(path for path, _ in rules).replace("*", "abcd"))

    def result(self, rules: FloatRules) -> Built:
        recipe = fxq.recipe("onnxruntime").with_rules(*rules)
        return Built(self.prepared, recipe, None, self.candidate(rules)[1])


class Clock:
    """Times files: by what each layer costs, and by the conversions between them."""

    def __init__(self, costs: dict[str, tuple[float, float]], scatter: Sequence[float] = (1.0,)) -> None:
        self.costs, self.scatter, self.calls = costs, scatter, 0

    def files(self, paths: Sequence[Path], rounds: int) -> Sequence[Latency]:
        self.calls += 1
        return [
            Latency(tuple(sum(one.ms for one in self.cost(path)) * self.factor(index + turn) for turn in range(rounds)))
            for index, path in enumerate(paths)
        ]

    def factor(self, index: int) -> float:
        return self.scatter[index % len(self.scatter)]

    def ops(self, path: Path) -> Sequence[OpTime]:
        return self.cost(path)

    def cost(self, path: Path) -> list[OpTime]:
        types = [name in path.name for name in "abcd"]
        return [
            OpTime(
                f"{name}/Conv", self.costs[name][is_float] + CONVERSION * (index > 0 and types[index - 1] != is_float)
            )
            for index, (name, is_float) in enumerate(zip("abcd", types, strict=True))
        ]


def rules(tuned: Tuned) -> list[str]:
    return [str(rule.match) for rule in tuned.recipe.rules]
