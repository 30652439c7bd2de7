"""Results that nothing reads leave the graph while it is traced; of others only the shape is read, and stays float."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq.graph.trace import trace
from fxq.state import find_state

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A convolution and a head, with what ``between(self, x, y)`` does in between."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.aux = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.side = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = self.between(self, x, y)
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


def net(between: Any) -> nn.Module:
    torch.manual_seed(0)
    return Net(between).eval()


def unread_head(self: Any, x: Tensor, y: Tensor) -> Tensor:
    self.aux(y)
    return y


def unread_in_place(self: Any, x: Tensor, y: Tensor) -> Tensor:
    copied = y.relu()
    copied += y
    copied[:, 0] = 1.0
    copied.view(-1).mul_(2)
    F.relu(copied, True)
    return y


def shape_of_a_layer(self: Any, x: Tensor, y: Tensor) -> Tensor:
    return y.reshape(self.side(x).shape)


def size_of_a_layer(self: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.interpolate(y, size=(self.side(x).size(2) * 2, self.side(x).shape[-1] * 2))


def zeros_like_a_layer(self: Any, x: Tensor, y: Tensor) -> Tensor:
    return (y + torch.zeros_like(self.side(x))).expand_as(self.side(x))


def written_view(self: Any, x: Tensor, y: Tensor) -> Tensor:
    y[:, :1, 2:] += 1.0
    return y


def written_by_position(self: Any, x: Tensor, y: Tensor) -> Tensor:
    F.relu(y, True)
    return y


DROPPED = {"head": unread_head, "in place": unread_in_place}
ONLY_SHAPE = {"shape": shape_of_a_layer, "size": size_of_a_layer, "zeros_like": zeros_like_a_layer}
WRITTEN = {"view": written_view, "by position": written_by_position}


@pytest.mark.parametrize("between", DROPPED.values(), ids=DROPPED.keys())
@pytest.mark.parametrize("inputs", [X, None], ids=["inputs", "no inputs"])
def test_what_nothing_reads_is_removed_and_on_record(between: Any, inputs: Tensor | None) -> None:
    model = net(between)
    prepared = fxq.prepare(model, inputs, fxq.recipe("tensorrt").with_rules(("*", None)), verify=inputs is not None)
    assert [node.op for node in prepared.graph.nodes] == [
        "placeholder", "call_module", "call_method", "call_module", "output",
    ]  # fmt: skip
    torch.testing.assert_close(prepared(X), model(X))
    state = find_state(prepared)
    assert state is not None
    removed = state.record.of("tracing")
    assert len(removed) >= 3
    assert all(entry.text == "nothing reads its result: removed" for entry in removed)


@pytest.mark.parametrize(
    "between",
    [*ONLY_SHAPE.values(), *WRITTEN.values(), unread_head],
    ids=[*ONLY_SHAPE.keys(), *WRITTEN.keys(), "unread"],
)
@pytest.mark.filterwarnings("ignore:.* got a single value from all of the data:UserWarning")  # zeros_like
def test_it_is_exported_with_an_open_batch(between: Any, tmp_path: Path) -> None:
    converted = fxq.quantize(net(between), [X], "tensorrt", X, progress=False)
    report = fxq.export_onnx(converted, tmp_path / "model.onnx")
    assert report.dynamic_batch


@pytest.mark.parametrize("between", ONLY_SHAPE.values(), ids=ONLY_SHAPE.keys())
def test_a_layer_of_which_only_the_shape_is_read_stays_in_float_and_says_why(between: Any) -> None:
    prepared = fxq.prepare(net(between), X)
    assert type(prepared.get_submodule("side")) is nn.Conv2d
    assert type(prepared.get_submodule("conv")) is fxq.nn.QuantConv2d
    assert "nothing reads its values, at most its shape is" in str(fxq.explain(prepared))


@pytest.mark.parametrize("between", WRITTEN.values(), ids=WRITTEN.keys())
def test_what_is_written_in_place_and_read_by_another_name_stays(between: Any) -> None:
    model = net(between)
    prepared = fxq.prepare(model, X, fxq.recipe("tensorrt").with_rules(("*", None)), verify=True)
    torch.testing.assert_close(prepared(X), model(X))


@torch.fx.wrap
def notes(x: Tensor, seen: Any) -> None:
    seen.append(x.shape)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x


def test_what_may_do_more_than_compute_stays() -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.counts = Counts()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor, seen: list[Any]) -> Tensor:
            y = self.conv(x)
            self.counts(y)
            self.relu(y)
            notes(y, seen)
            return y  # type: ignore[no-any-return]

    model = Watched().eval()
    model.relu.register_forward_hook(lambda module, args, output: None)
    recipe = fxq.recipe("tensorrt").replace(leaf_modules=("counts",))
    prepared = fxq.prepare(model, (X, [X]), recipe)
    assert {"counts", "relu", notes} <= {node.target for node in prepared.graph.nodes}
    fxq.calibrate(prepared, [(X, [X])], progress=False)
    assert fxq.convert(prepared)(X, [X]).shape == (2, 4, 6, 6)


def test_decided_questions_are_no_news() -> None:
    prepared = fxq.prepare(net(lambda self, x, y: y * 2 if x.shape[1] == 3 else y), X)
    state = find_state(prepared)
    assert state is not None
    assert not state.record.of("tracing")
    assert trace(net(unread_head), (X,)).get_submodule("aux.0") is not None
