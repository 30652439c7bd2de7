"""What held-out samples say of a pass, and of all passes together."""

import pytest
import torch

from fxq.judging import _by_sample
from fxq.measured import Measured


def measured(*noise: float) -> Measured:
    return Measured(0.0, torch.tensor(noise, dtype=torch.float64))


@pytest.mark.parametrize(
    ("noise", "gains"),
    [
        ((0.5, 0.6, 0.5, 6.0), True),
        ((0.5, 0.6, 0.5, 12.0), False),
        ((0.9, 1.2, 0.8, 10.0), False),
        ((0.02, 0.9, 0.5, 9.0), False),
    ],
    ids=["each gains", "one loses more than the others gain", "some lose", "one gains much, as one does by chance"],
)
def test_all_passes_are_kept_for_a_gain_in_most_samples_and_over_all(noise: tuple[float, ...], gains: bool) -> None:
    before = measured(1.0, 1.0, 1.0, 10.0)
    assert measured(*noise).gains_for_certain(before) is gains


@pytest.mark.parametrize("samples", [2, 3, 5, 9, 16, 40])
def test_where_there_is_nothing_to_gain_one_model_in_twenty_gains_for_certain(samples: int) -> None:
    torch.manual_seed(0)
    trials = 1000
    befores, afters = torch.randn(2, trials, samples, dtype=torch.float64).exp()
    pairs = zip(map(Measured, [0.0] * trials, befores), map(Measured, [0.0] * trials, afters), strict=True)
    found = [after.gains_for_certain(before) for before, after in pairs]
    # Less, since the sum must be less as well; three standard errors of a share of 1000 are 0.02.
    assert 0.01 < sum(found) / trials < 0.07


def test_of_a_single_sample_any_gain_counts() -> None:
    assert measured(0.9).gains_for_certain(measured(1.0))
    assert not measured(1.1).gains_for_certain(measured(1.0))


def test_one_sample_that_scatters_is_no_evidence_against_a_single_pass() -> None:
    assert measured(0.5, 0.6, 0.5, 12.0).is_no_worse_than(measured(1.0, 1.0, 1.0, 10.0))


def test_samples_are_told_apart_where_time_is_counted_first() -> None:
    first, second = torch.rand(4, 7, 3), torch.rand(4)
    expected = first.sum((1, 2)) + second
    torch.testing.assert_close(_by_sample([first, second], 4), expected)
    torch.testing.assert_close(_by_sample([first.transpose(0, 1), second], 4), expected)
    torch.testing.assert_close(
        _by_sample([first.transpose(0, 1), second[:3]], 4), expected.new_tensor([0]) + first.sum() + second[:3].sum()
    )
