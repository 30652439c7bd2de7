"""fxq walks a model as torch does: the same modules and tensors, under the same paths, in the same order."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fxq.module_tree import all_modules, has_attribute, named_modules, named_parameters, named_tensors


class Tied(nn.Module):
    """A module under two names, a weight in two modules, a place that is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.again = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.register_module("absent", None)
        self.tied = nn.Linear(2, 2, bias=False)
        self.tied.weight = self.first[0].weight


@pytest.mark.parametrize("remove_duplicate", [True, False], ids=["each once", "each path"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
@pytest.mark.parametrize(
    "make", [Tied, nn.ReLU, lambda: torch.jit.script(nn.Sequential(nn.Linear(2, 2)))], ids=["tied", "leaf", "script"]
)
def test_a_walk_gives_what_torch_gives(make: Callable[[], nn.Module], remove_duplicate: bool) -> None:
    model = make()
    assert all_modules(model) == list(model.modules())
    assert named_modules(model, remove_duplicate) == list(model.named_modules(remove_duplicate=remove_duplicate))
    walked, expected = (
        [(path, id(one)) for path, one in named]
        for named in (
            named_parameters(model, remove_duplicate),
            model.named_parameters(remove_duplicate=remove_duplicate),
        )
    )
    assert walked == expected


def test_tensors_are_parameters_and_buffers() -> None:
    model = Tied()
    expected = {path: one for path, one in model.state_dict(keep_vars=True).items() if not path.startswith("again")}
    assert {path: id(one) for path, one in named_tensors(model)} == {path: id(one) for path, one in expected.items()}


class HandsOn(nn.Module):
    """Has what the module in it has."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ReLU(inplace=True)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "inner" else getattr(self.inner, name)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
@pytest.mark.parametrize(
    "make", [Tied, nn.ReLU, HandsOn, lambda: torch.jit.script(nn.ReLU(inplace=True))], ids=lambda make: make.__name__
)
def test_a_module_has_what_hasattr_says(make: Callable[[], nn.Module]) -> None:
    model = make()
    for name in ("inplace", "first", "absent", "running_mean", "forward", "__deepcopy__", "nothing", "training"):
        assert has_attribute(model, name) == hasattr(model, name), name
