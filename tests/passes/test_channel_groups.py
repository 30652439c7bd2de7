"""Channel groups: which tensors share a factor for each channel, and why one cannot be put in."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.net import Net
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq_passes.accuracy.channel_groups import ChannelGroup, channel_groups

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
FOUND: list[ChannelGroup] = []


@fxq.register_pass("test_find_groups")
class FindGroups(fxq.Pass):
    """Keeps what it finds for the test."""

    stage = fxq.Stage.CALIBRATED

    def run(self, rw: fxq.Rewriter) -> None:
        FOUND[:] = channel_groups(rw)


def conv(channels: int = 6, inputs: int = 6, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, channels, kernel, padding=kernel // 2, **options)


def groups_of(
    model: nn.Module, x: Tensor = X, target: str = "tensorrt", *rules: tuple[str, fxq.QConfig]
) -> list[ChannelGroup]:
    torch.manual_seed(0)
    recipe = fxq.recipe(target).replace(calibrator="max").with_rules(*rules).with_pass("test_find_groups")
    fxq.calibrate(fxq.prepare(model.eval(), x, recipe), [x])
    return list(FOUND)


def shown(groups: list[ChannelGroup]) -> list[str]:
    """Return each group as ``producers > consumers``, with what bounds them, or why it is blocked."""

    def names(nodes: list[Any]) -> str:
        return " ".join(str(node.target) for node in nodes)

    return [
        f"{names(group.producers)} > {names(group.consumers)}"
        + (f" ({names(group.clips)})" if group.clips else "")
        + (f": {group.blocked}" if group.blocked else "")
        for group in groups
    ]


def stream(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    x = x + m.down(F.relu(m.up(x)))
    return m.last(x)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = conv(6, 4), conv(4)
        self.reduce, self.expand = conv(2), conv(6, 2)
        for parameter in self.reduce.parameters():
            parameter.data.abs_()  # or its rectifier may switch off both channels

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))
        return self.last(x * gate)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.norm = conv(4, 4, 7, groups=4), nn.LayerNorm(4)
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.down(F.relu(self.up(found))).permute(0, 3, 1, 2)


CONVS = {"first": conv(6, 4), "last": conv(4)}
JOINED = {
    "relu": (Net(lambda m, x: m.last(F.relu(m.first(x))), **CONVS), ["first > last"]),
    "residual stream": (
        Net(stream, first=conv(6, 4), up=conv(12), down=conv(6, 12), last=conv(4)),
        ["first down > up last", "up > down"],
    ),
    "depthwise": (
        Net(
            lambda m, x: m.last(m.relu2(m.dw(m.relu1(m.first(x))))),
            first=conv(6, 4), relu1=nn.ReLU6(), dw=conv(6, 6, 3, groups=6), relu2=nn.ReLU6(), last=conv(4),
        ),
        ["first > dw (relu1)", "dw > last (relu2)"],
    ),
    "pooled": (
        Net(
            lambda m, x: m.fc(F.adaptive_avg_pool2d(F.max_pool2d(m.first(x), 2), 1).flatten(1)),
            first=conv(6, 4), fc=nn.Linear(6, 3),
        ),
        ["first > fc"],
    ),
    "mean": (Net(lambda m, x: m.fc(m.first(x).mean((2, 3))), first=conv(6, 4), fc=nn.Linear(6, 3)), ["first > fc"]),
    "mean by keyword": (
        Net(lambda m, x: m.last(m.first(x).mean(dim=[-1, -2], keepdim=True)), **CONVS), ["first > last"]
    ),
    "resized": (Net(lambda m, x: m.last(F.interpolate(m.first(x), scale_factor=2)), **CONVS), ["first > last"]),
    "padded": (Net(lambda m, x: m.last(F.pad(m.first(x), (0, 1, 0, 1))), **CONVS), ["first > last"]),
    "permuted": (ConvNeXt(), ["norm > up", "up > down"]),
    "squeeze and excite": (SqueezeExcite(), ["first > reduce last", "reduce > expand"]),
    "two readers": (
        Net(lambda m, x: m.last(y := m.first(x)) + m.other(y), other=conv(4), **CONVS), ["first > last other"]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "expected"), JOINED.values(), ids=JOINED.keys())
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_a_factor_passes_through(model: nn.Module, expected: list[str], target: str) -> None:
    assert shown(groups_of(model, target=target)) == expected


def test_a_pre_norm_transformer_has_the_norms_and_the_hidden_layer() -> None:
    def block(m: Any, x: Tensor) -> Tensor:
        return x + m.down(F.relu(m.up(m.norm(x))))

    model = Net(block, norm=nn.LayerNorm(8), up=nn.Linear(8, 16), down=nn.Linear(16, 8))
    assert shown(groups_of(model, TOKENS)) == ["norm > up", "up > down"]


class Factor(nn.Module):
    """Multiplies by a stored factor for each channel, which something else may read too."""

    def __init__(self, shape: tuple[int, ...], kind: str = "") -> None:
        super().__init__()
        self.factor, self.kind = nn.Parameter(torch.rand(shape) + 1), kind
        if kind == "buffer":
            del self.factor
            self.register_buffer("factor", torch.rand(shape) + 1)
        self.last = conv(4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sin().to(x.dtype)
        y: Tensor = self.last(self.factor * x)
        if self.kind == "twice":
            y = y + (self.factor * x.cos())[:, :4]
        return y + (x + self.factor)[:, :4] if self.kind == "read" else y


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [
        ((6, 1, 1), "", ["mul > last"]),
        ((1, 6, 1, 1), "", ["mul > last"]),
        ((8,), "", []),  # along another dimension
        ((1, 1, 1), "", []),
        ((6, 8, 1), "", []),
        ((6, 1, 1), "read", []),
        ((6, 1, 1), "twice", []),
        ((6, 1, 1), "buffer", []),
    ],
)
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])  # reads it as it is, and through a quantizer
def test_a_stored_factor_of_a_product_takes_others(
    shape: tuple[int, ...], kind: str, expected: list[str], target: str
) -> None:
    x = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    found = [group for group in groups_of(Factor(shape, kind), x, target) if group.blocked is None]
    assert [f"{group.producers[0].name} > {group.consumers[0].name}" for group in found] == expected


def test_a_stored_factor_whose_range_is_given_stays() -> None:
    x = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    given = fxq.QConfig(activation=fxq.QuantDescriptor(amax=2.0))
    assert groups_of(Factor((6, 1, 1)), x, "onnxruntime", ("mul", given)) == []


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.other = conv(4, 4), conv(4, 4), conv(4, 4)
        self.other.weight = self.last.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)) + self.other(x)


SHARED = conv(4, 4)
BLOCKED = {
    "another reader": (
        Net(lambda m, x: (m.last(y := m.first(x)), y.sigmoid()), **CONVS), "'sigmoid' reads it as well"
    ),
    "an output": (Net(lambda m, x: (m.last(y := m.first(x)), y), **CONVS), "'output' reads it as well"),
    "cat": (
        Net(lambda m, x: m.last(y := m.first(x)) + m.both(torch.cat([y, y], 1)), both=conv(4, 12), **CONVS),
        "'cat' reads it as well",
    ),
    "gate": (Net(lambda m, x: m.last(y := m.first(x)) * m.gate(y), gate=conv(4), **CONVS), None),
    "gate of its own": (Net(lambda m, x: m.last((y := m.first(x)) * y), **CONVS), "none"),
    "another shape": (
        Net(lambda m, x: m.last(m.first(x) + m.bias(x.mean((2, 3), keepdim=True))), bias=conv(6, 4), **CONVS),
        "none",
    ),
    "a module called twice": (
        Net(lambda m, x: m.last(m.shared(m.shared(x))), shared=SHARED, last=conv(4, 4)), "'shared' is called more than"
    ),
    "a weight of two": (Tied(), "'last' shares its weight"),
    "channel shuffle": (
        Net(lambda m, x: m.last(m.shuffle(m.first(x))), shuffle=nn.ChannelShuffle(2), **CONVS), "none"
    ),
    "shuffle as a function": (Net(lambda m, x: m.last(torch.channel_shuffle(m.first(x), 2)), **CONVS), "none"),
    "rolled": (Net(lambda m, x: m.last(m.first(x).roll(1, 1)), **CONVS), "none"),
    "mean of the channels": (
        # The mean has as many columns as the tensor had channels.
        Net(lambda m, x: m.fc(m.first(x).mean(1)), first=conv(8, 4), fc=nn.Conv1d(8, 3, 1)), "none",
    ),
    "flattened with space": (
        Net(lambda m, x: m.fc(F.max_pool2d(m.first(x), 4).flatten(1)), first=conv(6, 4), fc=nn.Linear(24, 3)), "none"
    ),
    "transposed convolution": (
        Net(lambda m, x: m.last(m.first(x)), first=nn.ConvTranspose2d(4, 6, 2), last=conv(4)),
        "'first' is a QuantConvTranspose2d",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "reason"), BLOCKED.values(), ids=BLOCKED.keys())
def test_what_a_factor_would_change_blocks_it(model: nn.Module, reason: str | None) -> None:
    groups = groups_of(model)
    usable = [group for group in groups if group.blocked is None]
    if reason == "none":
        assert groups == []
    elif reason is None:
        assert shown(usable) == ["first > last gate"]
    else:
        assert usable == []
        assert reason in shown(groups)[0]


TOKEN_OPERATIONS = {
    "pool over channels": lambda x: F.avg_pool1d(x, 3, 1, 1),
    "pool over tokens and channels": lambda x: F.max_pool2d(x, 3, 1, 1),
    "padded channels": lambda x: F.pad(x, (1, -1)),
    "resized channels": lambda x: F.interpolate(x, 8),
}


@pytest.mark.parametrize("operation", TOKEN_OPERATIONS.values(), ids=TOKEN_OPERATIONS.keys())
def test_operations_along_the_channels_of_tokens_block(operation: Callable[[Tensor], Tensor]) -> None:
    model = Net(lambda m, x: m.last(operation(m.first(x))), first=nn.Linear(8, 8), last=nn.Linear(8, 8))
    assert groups_of(model, TOKENS) == []
