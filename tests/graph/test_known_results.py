from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fxq.graph.known_results import KnownResults
from fxq.graph.trace import trace

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@pytest.fixture
def known() -> Iterator[KnownResults]:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield KnownResults()


def facts(result: Any) -> list[Any]:
    return [leaf if leaf is None else (leaf.shape, leaf.stride(), leaf.dtype) for leaf in pytree.tree_leaves(result)]


NEW: dict[str, Callable[[], Call]] = {
    "linear": lambda: (nn.Linear(8, 4), (torch.rand(2, 8),), {}),
    "lstm": lambda: (nn.LSTM(8, 4, num_layers=2), (torch.rand(5, 2, 8),), {}),
    "attention": lambda: (nn.MultiheadAttention(8, 2), (torch.rand(5, 2, 8),) * 3, {"need_weights": False}),
    "max": lambda: (torch.max, (torch.rand(2, 8), 1), {}),
    "method": lambda: (torch.Tensor.sum, (torch.rand(2, 8),), {"dim": (0, 1)}),
    "channels last": lambda: (
        F.conv2d, (torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last), torch.rand(4, 3, 1, 1)), {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", NEW.values(), ids=NEW)
def test_an_equal_call_gives_new_tensors_like_those_of_the_first(known: KnownResults, make: Callable[[], Call]) -> None:
    first, again = known.call(*make()), known.call(*make())
    function, args, kwargs = make()
    assert facts(first) == facts(again) == facts(function(*args, **kwargs))
    assert type(first) is type(again)
    leaves = [leaf for result in (first, again) for leaf in pytree.tree_leaves(result) if leaf is not None]
    assert len(set(map(id, leaves))) == len(leaves)


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm2d(3).eval(), lambda: nn.Conv2d(3, 3, 1)], ids=["norm", "conv"])
def test_equal_layers_on_equal_shapes_are_evaluated_once(
    known: KnownResults, make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, layers, evaluated = torch.rand(2, 3, 8, 8), (make(), make()), []
    forward = type(layers[0]).forward

    def noted(self: nn.Module, x: Tensor) -> Any:
        evaluated.append(self)
        return forward(self, x)

    monkeypatch.setattr(type(layers[0]), "forward", noted)
    for layer in layers:
        known.call(layer, (x,), {})
    assert evaluated == [layers[0]]


def pruned(layer: nn.Linear) -> nn.Linear:
    layer.weight, layer.bias = nn.Parameter(layer.weight[:3]), nn.Parameter(layer.bias[:3])
    return layer


def with_pruned_output(attention: nn.MultiheadAttention) -> nn.MultiheadAttention:
    pruned(attention.out_proj)
    return attention


UNEQUAL: dict[str, tuple[Callable[[], Call], Callable[[], Call]]] = {
    "shape": (
        lambda: (torch.relu, (torch.rand(2, 8),), {}),
        lambda: (torch.relu, (torch.rand(3, 8),), {}),
    ),
    "stride": (
        lambda: (torch.relu, (torch.rand(2, 8),), {}),
        lambda: (torch.relu, (torch.rand(8, 2).t(),), {}),
    ),
    "option": (
        lambda: (nn.AvgPool1d(2), (torch.rand(1, 2, 8),), {}),
        lambda: (nn.AvgPool1d(4), (torch.rand(1, 2, 8),), {}),
    ),
    "weight": (
        lambda: (nn.Linear(8, 4), (torch.rand(2, 8),), {}),
        lambda: (nn.Linear(8, 4, dtype=torch.float64), (torch.rand(2, 8, dtype=torch.float64),), {}),
    ),
    "stored tensor": (
        lambda: (nn.Linear(8, 4), (torch.rand(2, 8),), {}),
        lambda: (pruned(nn.Linear(8, 4)), (torch.rand(2, 8),), {}),
    ),
    "module inside": (
        lambda: (nn.MultiheadAttention(8, 2), (torch.rand(5, 8),) * 3, {}),
        lambda: (with_pruned_output(nn.MultiheadAttention(8, 2)), (torch.rand(5, 8),) * 3, {}),
    ),
    "type of a number": (
        lambda: (torch.mul, (torch.ones(2, dtype=torch.int64), 1), {}),
        lambda: (torch.mul, (torch.ones(2, dtype=torch.int64), 1.0), {}),
    ),
    "which tensors are one": (
        lambda: (nn.MultiheadAttention(8, 2, batch_first=True).eval(), (torch.rand(4, 2, 8),) * 3, {}),
        lambda: (
            nn.MultiheadAttention(8, 2, batch_first=True).eval(), tuple(torch.rand(4, 2, 8) for _ in range(3)), {}
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("one", "other"), UNEQUAL.values(), ids=UNEQUAL)
def test_a_call_that_differs_is_evaluated_anew(
    known: KnownResults, one: Callable[[], Call], other: Callable[[], Call]
) -> None:
    known.call(*one())
    function, args, kwargs = other()
    assert facts(known.call(function, args, kwargs)) == facts(function(*args, **kwargs))


def test_the_dtype_of_autocast_is_not_remembered(known: KnownResults) -> None:
    layer, x = nn.Linear(8, 4), torch.rand(2, 8)
    assert known.call(layer, (x,), {}).dtype is torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert known.call(layer, (x,), {}).dtype is torch.bfloat16
    assert known.call(layer, (x,), {}).dtype is torch.float32


@pytest.mark.parametrize(
    "module", [nn.Identity(), nn.Dropout().eval(), nn.ReLU(inplace=True)], ids=["identity", "dropout", "in place"]
)
def test_what_returns_its_input_returns_the_input_of_each_call(known: KnownResults, module: nn.Module) -> None:
    for x in (torch.rand(2, 8), torch.rand(2, 8)):
        assert known.call(module, (x,), {}) is x


def test_a_view_shares_the_memory_of_its_own_input(known: KnownResults) -> None:
    for x in (torch.rand(2, 3, 4), torch.rand(2, 3, 4)):
        view = known.call(nn.Flatten(), (x,), {})
        assert view.untyped_storage()._cdata == x.untyped_storage()._cdata


def test_numbers_in_a_tensor_stay_known(known: KnownResults) -> None:
    for number in (3, 5):
        assert known.call(torch.add, (torch.tensor(number), 1), {}).item() == number + 1


@pytest.mark.parametrize("hooked", [False, True], ids=["subclass", "hook"])
def test_code_of_the_models_author_runs_each_time(known: KnownResults, hooked: bool) -> None:
    seen: list[Tensor] = []

    class Watched(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    module = nn.ReLU() if hooked else Watched()
    if hooked:
        module.register_forward_hook(lambda module, args, result: seen.append(result))
    for _ in range(2):
        known.call(module, (torch.rand(2, 8),), {})
    assert len(seen) == 2


def test_changing_the_shape_of_one_result_in_place_leaves_an_equal_one_as_it_is() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.first(x), self.second(x)
            first.unsqueeze_(0)
            return first + second + self.third(x)

    traced = trace(Twins(), (torch.rand(2, 8),))
    shapes = {node.name: tuple(node.meta["val"].shape) for node in traced.graph.nodes if node.op == "call_module"}
    assert (shapes["second"], shapes["third"]) == ((2, 8), (2, 8))
