"""What counts as good: figures against slow ones, and outputs of which most is lost though the whole looks well."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fxq.compare.quality import Quality, measure


def quality(want: Tensor, have: Tensor) -> Quality:
    return measure([[("output", want)]], [[("output", have)]], len(want), "a test")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_figures_are_those_of_their_definition() -> None:
    want, have = noise(6, 5), noise(6, 5) + 0.15 * noise(6, 5, seed=1)
    (found,) = quality(want, have).outputs
    first, second = want.numpy().astype(np.float64), have.numpy().astype(np.float64)
    assert found.sqnr_db == pytest.approx(10 * math.log10((first**2).sum() / ((first - second) ** 2).sum()))
    assert found.agreement == pytest.approx((first.argmax(1) == second.argmax(1)).mean())
    centred = first - sorted(first.flatten())[14]  # the lower median of thirty
    each = sorted(10 * np.log10((centred**2).sum(1) / ((first - second) ** 2).sum(1)))
    assert found.typical_db == pytest.approx((each[2] + each[3]) / 2)  # the median of six
    assert found.verdict == quality(want, have).verdict == "fair"


def loud_sample() -> tuple[Tensor, Tensor]:
    want = noise(16, 4)
    want[0] *= 1e4
    return want, want.where(torch.arange(16)[:, None] == 0, 0.0)


def offset() -> tuple[Tensor, Tensor]:
    want = 300 + noise(16, 1)
    return want, want + 2 * noise(16, 1, seed=1)


def mask() -> tuple[Tensor, Tensor]:
    want, filled = noise(16, 8), torch.arange(8) > 4
    return want.masked_fill(filled, -1e9), torch.zeros(16, 8).masked_fill(filled, -1e9)


def units() -> tuple[Tensor, Tensor]:
    want = noise(4, 6, 3, 3)
    want[:, :4] *= 1e3
    return want, want.where(torch.arange(6)[:, None, None] < 4, 0.0)


@pytest.mark.parametrize("case", [loud_sample, offset, mask, units])
def test_what_is_lost_is_seen_behind_what_is_loud(case: Callable[[], tuple[Tensor, Tensor]]) -> None:
    found = quality(*case())
    assert found.sqnr_db is not None
    assert found.sqnr_db > 20
    assert found.verdict == "broken"
    assert found.outputs[0].is_below(5)


def test_integers_are_judged_by_how_many_are_equal() -> None:
    want = torch.arange(10)
    assert quality(want, want).verdict == "good"
    found = quality(want, want.where(want < 4, -1))
    assert (found.agreement, found.verdict, found.outputs[0].is_below(5)) == (0.4, "broken", True)


def test_nothing_finite_is_nothing_right_and_no_signal_is_unknown() -> None:
    assert quality(noise(2, 2), torch.full((2, 2), math.nan)).verdict == "broken"
    assert quality(torch.zeros(2, 2), noise(2, 2)).sqnr_db is None
    assert str(quality(torch.zeros(2, 1), torch.zeros(2, 1))).startswith("nothing to compare (unknown), against a test")


def test_the_worst_output_speaks_for_all() -> None:
    want, bad = noise(4, 3), noise(4, 3, seed=2)
    found = measure([[("a", want), ("b", want)]], [[("a", want), ("b", bad)]], 4, "a test")
    assert found.worst is not None
    assert found.worst.name == "b"
    assert str(found).startswith("b: ")
