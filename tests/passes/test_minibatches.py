"""Minibatches: samples of one form are pooled where the float model allows it, and images mirrored and cut."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fxq.batches import Inputs
from fxq_passes.accuracy.minibatches import Minibatches, pooled


def batches(*tensors: Tensor) -> list[Inputs]:
    return [Inputs((tensor,), {}) for tensor in tensors]


def doubled(inputs: Any) -> list[Tensor]:
    return [leaf * 2 for leaf in inputs.args]


def test_batches_of_one_form_are_one_pool() -> None:
    x = torch.arange(24.0).reshape(12, 2)
    (pool,) = pooled(batches(*x.split(5)), doubled)
    assert pool.count == 12
    assert torch.equal(pool.inputs.args[0], x)
    one, other = pooled(batches(x, torch.zeros(3, 4)), doubled)
    assert (one.count, other.count) == (12, 3)


def test_what_does_not_count_samples_is_taken_as_it_is() -> None:
    x, mask = torch.arange(24.0).reshape(12, 2), torch.ones(1, 2)
    given = [Inputs((part, mask), {}) for part in x.split(4)]
    (pool,) = pooled(given, lambda inputs: [inputs.args[0] * inputs.args[1]])
    taken = pool.at(torch.tensor([3, 7]))
    assert torch.equal(taken.args[0], x[[3, 7]])
    assert taken.args[1] is mask


@pytest.mark.parametrize(
    "outputs",
    [lambda inputs: [inputs.args[0] - inputs.args[0].mean(0)], lambda inputs: [inputs.args[0].sum()]],
    ids=["samples meet", "one number"],
)
def test_batches_stay_whole_where_samples_cannot_be_told_apart(outputs: Any) -> None:
    x = torch.arange(24.0).reshape(12, 2)
    pools = pooled(batches(*x.split(4)), outputs)
    assert [pool.count for pool in pools] == [1, 1, 1]
    assert all(torch.equal(pool.at(torch.tensor([0])).args[0], x[4 * i : 4 * i + 4]) for i, pool in enumerate(pools))
    found = Minibatches(pools, 8)
    assert found.samples == 12
    assert [len(inputs.args[0]) for inputs in next(found.steps())] == [4, 4]
    assert Minibatches(pools, 2).steps_of(2) == 6  # of four samples each


def test_each_sample_is_drawn_once_in_a_round() -> None:
    x = torch.arange(36.0).reshape(18, 2)
    found = Minibatches(pooled(batches(*x.split(5)), doubled), 6)
    assert found.samples == 18
    assert torch.equal(torch.cat([inputs.args[0] for inputs in found.whole()]), x)
    assert found.steps_of(4) == 12
    steps = found.steps()
    for _ in range(2):
        drawn = torch.cat([inputs.args[0] for _ in range(3) for inputs in next(steps)])
        assert sorted(drawn[:, 0].tolist()) == x[:, 0].tolist()
        assert drawn[:, 0].tolist() != x[:, 0].tolist()


def images(inputs: Any) -> list[Tensor]:
    return [inputs.args[0].mean((1, 2, 3))]


def fixed_size(inputs: Any) -> list[Tensor]:
    return [inputs.args[0].reshape(len(inputs.args[0]), 3 * 128 * 128)]


@pytest.mark.parametrize(("outputs", "side"), [(images, 96), (fixed_size, 128)], ids=["any size", "one size"])
def test_images_are_mirrored_and_cut_where_the_model_takes_it(outputs: Any, side: int) -> None:
    x = torch.rand(16, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    found = Minibatches(pooled(batches(*x.split(8)), outputs), 4)
    assert found.share == (side / 128) ** 2
    steps = found.steps()
    drawn = [inputs.args[0] for _ in range(6) for inputs in next(steps)]
    assert {tuple(one.shape[1:]) for one in drawn} == {(3, side, side)}
    assert all(inputs.args[0].shape[-1] == 128 for inputs in found.whole())
    assert found.steps_of(2) == 2 * 3 * 16 // 4
    if side == 128:
        is_mirrored = [not any(torch.equal(one[0], whole) for whole in x) for one in drawn]
        assert any(is_mirrored)
        assert not all(is_mirrored)


@pytest.mark.parametrize("shape", [(8, 1, 128, 128), (8, 3, 128), (8, 128)], ids=str)
def test_what_does_not_look_like_images_is_left_as_it_is(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    (pool,) = pooled(batches(x[:4], x[4:]), doubled)
    assert not pool.is_mirrored
    assert pool.crop is None
