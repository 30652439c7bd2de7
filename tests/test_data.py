"""fxq.Data: what is kept of batches, what is held out, and what it refuses."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.small import images, residual
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.batches import Inputs

DATA = images(24)


@pytest.fixture(scope="module")
def prepared() -> GraphModule:
    """A prepared model that no test changes."""
    return fxq.prepare(residual(), images(2))


def begun(batches: Any, **options: Any) -> fxq.Data:
    data = fxq.Data(batches, progress=False, **options)
    data.begin(keep=True, hold_out=True)
    return data


def samples(batches: list[Inputs]) -> Tensor:
    return torch.cat([inputs.args[0] for inputs in batches])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_samples": 0}, "max_samples is how many samples to keep, 1 or more, got 0"),
        ({"max_samples": True}, "got True"),
        ({"max_samples": 2.5}, "got 2.5"),
        ({"held_out": 1.0}, "held_out is a share of the samples, from 0 to below 1, got 1.0"),
        ({"held_out": -0.1}, "got -0.1"),
        ({"held_out": "half"}, "got 'half'"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(fxq.InputError, match=words):
        fxq.Data([DATA], **options)


def test_what_cannot_be_iterated_is_refused() -> None:
    with pytest.raises(fxq.InputError, match="iterable of batches, got NoneType"):
        fxq.Data(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 5, 8, 24])
def test_an_eighth_is_held_out_and_the_rest_is_learned_from(prepared: GraphModule, size: int) -> None:
    data = begun(DATA.split(size))
    learned, held_out = samples(data.kept(prepared)), samples(data.judging(prepared))
    assert (len(learned), len(held_out)) == (21, 3)
    # No sample is lost, and none is in both.
    both = torch.cat([learned, held_out]).flatten(1)
    assert both.unique(dim=0).shape == DATA.flatten(1).shape
    assert data.seen == 24


def test_no_more_than_max_samples_are_kept(prepared: GraphModule) -> None:
    data = begun((batch for batch in DATA.split(5)), max_samples=10, held_out=0.2)
    data.feed(prepared)
    assert len(samples(data.kept(prepared))) == 8
    assert len(samples(data.judging(prepared))) == 2
    assert data.seen == 24  # all of them were fed


def test_more_are_held_out_where_more_are_read(prepared: GraphModule) -> None:
    """To learn from, 56 are kept as ever."""
    data = begun(DATA.repeat(8, 1, 1, 1).split(32))
    data.feed(prepared)
    assert len(samples(data.kept(prepared))) == 56
    assert len(samples(data.judging(prepared))) == 24  # an eighth of 192
    data = begun(DATA.repeat(20, 1, 1, 1).split(32))
    data.feed(prepared)
    assert len(samples(data.judging(prepared))) == 32


def test_reading_stops_when_enough_are_kept(prepared: GraphModule) -> None:
    taken: list[int] = []

    def loader() -> Iterator[Tensor]:
        for index, batch in enumerate(DATA.split(4)):
            taken.append(index)
            yield batch

    assert len(samples(begun(loader(), max_samples=8, held_out=0).kept(prepared))) == 8
    assert taken == [0, 1]


@pytest.mark.parametrize(
    ("held_out", "sizes"), [(0.125, [2, 2, 3, 2, 2, 2, 2, 2, 2, 2]), (0.0, [7, 7, 7, 3])], ids=["cut", "whole"]
)
def test_large_batches_are_kept_in_parts_where_some_are_held_out(held_out: float, sizes: list[int]) -> None:
    data = fxq.Data(DATA.split(7), progress=False, held_out=held_out)
    data.begin(keep=True, hold_out=True, sample_bytes=2**23)
    prepared = fxq.prepare(residual(), images(2))
    assert [len(inputs.args[0]) for inputs in data.kept(prepared)] == sizes
    both = samples(data.kept(prepared) + data.judging(prepared))
    assert both.flatten(1).unique(dim=0).shape == DATA.flatten(1).shape


def test_samples_are_copies(prepared: GraphModule) -> None:
    """A loader may fill one buffer again and again."""
    buffer = torch.empty(2, 1, 8, 8)

    def loader() -> Iterator[Tensor]:
        for value in range(4):
            yield buffer.fill_(value)

    found = samples(begun(loader(), held_out=0).kept(prepared))
    assert found[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_generator_gives_its_kept_samples_a_second_time(prepared: GraphModule) -> None:
    data = begun((batch for batch in DATA.split(8)), held_out=0.25)
    data.feed(prepared)
    first, held_out = samples(data.kept(prepared)), samples(data.judging(prepared))
    data.begin(keep=True, hold_out=True)
    data.feed(prepared)
    assert torch.equal(samples(data.kept(prepared)), first)
    assert torch.equal(samples(data.judging(prepared)), held_out)


def test_nothing_is_kept_where_no_pass_asks(prepared: GraphModule) -> None:
    data = fxq.Data(DATA.split(8), progress=False)
    data.begin(keep=False, hold_out=False)
    data.feed(prepared)
    assert data.kept(prepared) == []
    assert data.judging(prepared) == []


def test_tensors_of_another_batch_size_are_taken_whole() -> None:
    x, table, scalar = torch.arange(8.0).reshape(4, 2), torch.ones(3, 2), torch.tensor(2.0)
    part = Inputs((x, table), {"scale": scalar, "name": "x"}).part(1, 3)
    assert torch.equal(part.args[0], x[1:3])
    assert torch.equal(part.args[1], table)
    assert part.kwargs == {"scale": scalar, "name": "x"}


def test_batches_of_different_shapes_are_kept_as_they_are(prepared: GraphModule) -> None:
    small = images(3)[:, :, :6, :6]
    kept = begun([images(3), small], held_out=0).kept(prepared)
    assert [inputs.args[0].shape for inputs in kept] == [(3, 1, 8, 8), (3, 1, 6, 6)]


def test_an_empty_batch_is_passed_over(prepared: GraphModule) -> None:
    data = begun([DATA[:0], DATA[:4]], held_out=0)
    data.feed(prepared)
    assert data.seen == 4


def test_only_empty_batches_are_no_data(prepared: GraphModule) -> None:
    with pytest.raises(fxq.CalibrationError, match="no batch to calibrate with: all 2 batches are empty"):
        begun([DATA[:0], DATA[:0]]).feed(prepared)


def test_a_loader_that_ends_early_is_told_of(prepared: GraphModule) -> None:
    class Promises(list[Tensor]):
        def __len__(self) -> int:
            return 5

    with pytest.warns(UserWarning, match="a length of 5 batches and ended after 3"):
        begun(Promises(DATA.split(8))).feed(prepared)


def test_forward_is_fed_whole_batches_and_its_arguments_are_kept(prepared: GraphModule) -> None:
    fed: list[Any] = []

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> None:
        model(batch["pixels"] * 2)
        fed.append(batch)

    batches = [{"pixels": batch} for batch in DATA.split(8)]
    data = begun(batches, forward=forward, held_out=0.3)
    data.feed(prepared)
    assert torch.equal(samples(data.kept(prepared)), 2 * torch.cat([DATA[:8], DATA[16:]]))
    assert torch.equal(samples(data.judging(prepared)), 2 * DATA[8:16])
    assert [id(batch) for batch in fed] == [id(batches[0]), id(batches[2])]  # the held-out one was not run


def test_a_forward_that_calls_something_else_is_told(prepared: GraphModule) -> None:
    with pytest.raises(fxq.CalibrationError, match="did not call the model that it is given"):
        begun([DATA], forward=lambda model, batch: None).feed(prepared)
