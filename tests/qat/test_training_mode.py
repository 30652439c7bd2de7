"""What a model does in training only stays in the prepared model, follows train() and eval(), or is named."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

import fxq
from fxq.nn.by_mode import ByMode

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class DropPath(nn.Module):
    """Stochastic depth as timm writes it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(x.shape[0], 1) > 0.5)


class Net(nn.Module):
    """Two layers, and what ``between(self, x)`` does in between."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.path, self.depth = DropPath(), StochasticDepth(0.5, "row")
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self, self.norm(self.first(x)))
        return self.second(x)  # type: ignore[no-any-return]


def inline(self: Any, x: Tensor) -> Tensor:
    if self.training:
        x = x * (torch.rand_like(x) > 0.5)
    return x


def attention(self: Any, x: Tensor) -> Tensor:
    x = x[None, None]
    return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)[0, 0]


def fails(self: Any, x: Tensor) -> Tensor:
    if self.training:
        raise RuntimeError("wants targets")
    return x


KEPT = {
    "dropout": lambda self, x: F.dropout(x, 0.5, training=self.training),
    "by position": lambda self, x: F.dropout(x, 0.5, self.training),
    "drop path": lambda self, x: x + self.path(x),
    "stochastic depth": lambda self, x: x + self.depth(x),
    "attention": attention,
}


def net(between: Any) -> nn.Module:
    torch.manual_seed(0)
    return Net(between).eval()


def is_random(model: nn.Module) -> bool:
    return not torch.equal(model(X), model(X))


@pytest.mark.parametrize("inputs", [X, X[:1], None], ids=["inputs", "one sample", "no inputs"])
@pytest.mark.parametrize("between", KEPT.values(), ids=KEPT.keys())
def test_it_stays_and_follows_the_mode(between: Any, inputs: Tensor | None, tmp_path: Path) -> None:
    model = net(between)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = fxq.prepare(model, inputs, "onnxruntime", qat=True)
    fxq.calibrate(prepared, [X], progress=False)
    expected = model(X)
    assert (prepared(X) - expected).norm() / expected.norm() < 0.05  # int8
    trained = copy.deepcopy(prepared).train()
    assert is_random(trained)
    assert not is_random(trained.eval())
    assert not is_random(prepared)
    converted = fxq.convert(prepared)
    assert not any(isinstance(module, ByMode) for module in converted.modules())
    assert (converted(X) - expected).norm() / expected.norm() < 0.05
    assert not model.training
    if inputs is X:
        fxq.export_onnx(converted, tmp_path / "model.onnx")


@pytest.mark.parametrize("between", KEPT.values(), ids=KEPT.keys())
def test_without_training_nothing_of_it_is_in_the_graph(between: Any) -> None:
    prepared = fxq.prepare(net(between), X, fxq.recipe("tensorrt").with_rules(("*", None))).train()
    torch.testing.assert_close(prepared(X), net(between)(X))


def test_a_model_that_is_alike_in_both_modes_has_the_same_graph() -> None:
    model = net(lambda self, x: x.relu())
    trained, plain = fxq.prepare(model, X, qat=True), fxq.prepare(model, X)
    assert trained.code == plain.code


@pytest.mark.parametrize(
    ("between", "text"),
    [
        (inline, r"in training, which its graph cannot hold: in File .*test_training_mode.py\", line \d+.*rand_like"),
        (fails, r"cannot be traced in training mode: .*wants targets"),
    ],
    ids=["among layers", "fails"],
)
def test_what_cannot_be_kept_is_named_and_computed_as_in_evaluation(between: Any, text: str) -> None:
    model = net(between)
    with pytest.warns(UserWarning, match=text) as caught:
        prepared = fxq.prepare(model, X, qat=True)
    assert [str(one.filename) for one in caught] == [__file__]
    assert not is_random(prepared)


class OwnTrain(nn.Module):
    """Switches more than ``training``."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.share = nn.Linear(4, 4), 0.0

    def train(self, mode: bool = True) -> "OwnTrain":
        self.share = 0.5 if mode else 0.0
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), self.share, True)


def test_what_an_overridden_train_does_is_not_followed_and_said() -> None:
    with pytest.warns(UserWarning, match=r"train\(\) is overridden in '0'.*do what else it does yourself"):
        fxq.prepare(nn.Sequential(OwnTrain()).eval(), torch.randn(2, 4), qat=True)


class AsksALayer(nn.Module):
    """Reads the mode off a layer of torch, which becomes one node."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.conv(x).mean((2, 3)), 0.5, training=self.dropout.training))


@pytest.mark.parametrize("frontend", ["symbolic", "export"])
def test_the_flag_of_a_layer_follows_the_mode(frontend: Any) -> None:
    x = torch.rand(4, 3, 6, 6)
    prepared = fxq.prepare(AsksALayer().eval(), x, qat=True, frontend=frontend)
    fxq.calibrate(prepared, [x])
    prepared.train()
    assert not torch.equal(prepared(x), prepared(x))
    prepared.eval()
    assert torch.equal(prepared(x), prepared(x))
