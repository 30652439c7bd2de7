"""What held-out samples say of a pass, and of all passes together."""

import pytest
import torch

from fxq.measured import Measured


def measured(*noise: float) -> Measured:
    return Measured(0.0, torch.tensor(noise, dtype=torch.float64))


@pytest.mark.parametrize(
    ("noise", "gains"),
    [((0.5, 0.6, 0.5, 9.0), True), ((0.5, 0.6, 0.5, 12.0), False), ((0.9, 1.2, 0.8, 10.0), False)],
    ids=["each gains", "one loses more than the others gain", "some lose"],
)
def test_all_passes_are_kept_for_a_gain_in_most_samples_and_over_all(noise: tuple[float, ...], gains: bool) -> None:
    before = measured(1.0, 1.0, 1.0, 10.0)
    assert measured(*noise).gains_for_certain(before) is gains


def test_one_sample_that_scatters_is_no_evidence_against_a_single_pass() -> None:
    assert measured(0.5, 0.6, 0.5, 12.0).is_no_worse_than(measured(1.0, 1.0, 1.0, 10.0))
