"""A copy of a model is what copy.deepcopy makes of it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxq import TensorQuantizer
from fxq.calib import (
    Calibrator,
    HistogramCalibrator,
    MaxCalibrator,
    MinMaxCalibrator,
    MovingAverageMinMaxCalibrator,
)
from fxq.graph.modules import deep_copy

COPIES = pytest.mark.parametrize("copied", [deep_copy, copy.deepcopy], ids=["fxq", "python"])


class Knot(nn.Module):
    """Holds everything twice: a layer, a weight, an empty dict, and itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(2, 2)
        self.tied = nn.Linear(2, 2)
        self.tied.weight = self.first.weight
        self.cache: dict[str, Tensor] = {}
        self.same_cache, self.layers, self.own = self.cache, [self.first], [self]
        self.register_buffer("view", self.first.weight.detach()[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.second(self.first(x)))  # type: ignore[no-any-return]


class Parent(nn.Module):
    """Says in __setstate__ what its child is by then."""

    def __init__(self) -> None:
        super().__init__()
        self.child, self.seen = nn.Linear(2, 3), 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.seen = self.child.out_features


class Kept(nn.Module):
    """Is its own copy."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Kept":
        return self


class Slim(nn.Module):
    """Leaves out of its state what it can make again."""

    def __init__(self) -> None:
        super().__init__()
        self.table: list[int] | None = [1, 2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "table": None}


@COPIES
def test_what_is_one_object_stays_one(copied: Callable[[Knot], Knot]) -> None:
    knot = Knot()
    found = copied(knot)
    assert found.first is found.second is found.layers[0]
    assert found.first is not knot.first
    assert found.tied.weight is found.first.weight
    assert found.cache is found.same_cache
    assert found.cache is not knot.cache
    assert found.own[0] is found
    assert torch.equal(found(torch.ones(1, 2)), knot(torch.ones(1, 2)))
    assert (found.training, list(found.state_dict())) == (knot.training, list(knot.state_dict()))


@COPIES
def test_a_module_copies_itself_as_its_class_says(copied: Callable[[nn.Sequential], nn.Sequential]) -> None:
    model = nn.Sequential(Parent(), Kept(), Slim(), nn.LSTM(2, 2))
    parent, kept, slim, lstm = copied(model)
    assert parent.seen == 3
    assert kept is model[1]
    assert slim.table is None
    assert all(flat is weight for flat, weight in zip(lstm._flat_weights, lstm.parameters(), strict=True))


def test_what_is_known_stands_for_what_it_replaces() -> None:
    model, other = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Identity()
    assert deep_copy(model, {id(model[0]): other})[0] is other


@pytest.mark.parametrize(
    "calibrator",
    [MaxCalibrator(track_amax=True), MinMaxCalibrator(), MovingAverageMinMaxCalibrator(), HistogramCalibrator()],
    ids=lambda calibrator: type(calibrator).__name__,
)
def test_what_a_copy_observes_the_original_does_not_see(calibrator: Calibrator) -> None:
    quantizer = TensorQuantizer()
    quantizer._calibrator = calibrator
    calibrator.observe(torch.tensor([-1.0, 2.0]))
    before, copied = calibrator.state(), deep_copy(quantizer).calibrator
    assert copied is not None
    copied.observe(torch.tensor([-5.0, 7.0]))
    copied.merge(type(copied).from_state(before))
    assert all(torch.equal(value, before[name]) for name, value in calibrator.state().items())
    copied.reset()
    assert all(torch.equal(value, before[name]) for name, value in calibrator.state().items())
