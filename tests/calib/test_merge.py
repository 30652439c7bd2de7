"""Merging: any split of any batches, merged in any order, is what one calibrator that saw all holds, bit for bit."""

import random

import pytest
import torch
from torch import Tensor

from fxq.calib import Calibrator, HistogramCalibrator, MaxCalibrator, MinMaxCalibrator
from fxq.errors import CalibrationError

METHODS = ("max", "percentile", "mse", "entropy")


def random_batch(seed: int) -> Tensor:
    """Return values of any scale, dtype and sign: none, zeros, and many on edges of bins among them."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    size = draw.choice([0, 1, 7, 300])
    kind = draw.choice(["normal", "relu", "whole", "zeros", "tiny", "long"])
    scale = 2.0 ** draw.randint(-6, 6) * draw.choice([1.0, 1.0, draw.uniform(1, 2)])
    normal = torch.randn(size, generator=generator)
    values = {
        "normal": normal * scale,
        "relu": torch.relu(normal) * scale,
        "whole": (normal * 8).round() * scale,
        "zeros": -torch.zeros(size),
        "tiny": normal * 1e-41,
        "long": normal.exp().pow(4) * scale * draw.choice([-1, 1]),
    }[kind]
    dtype = draw.choice([torch.float32, torch.float32, torch.bfloat16, torch.float64])
    if kind in ("relu", "whole"):
        dtype = draw.choice([dtype, torch.float16])
    return values.to(dtype)


def in_transit(calibrator: Calibrator, draw: random.Random) -> Calibrator:
    """Return the calibrator, or one made from its state."""
    return type(calibrator).from_state(calibrator.state()) if draw.random() < 0.3 else calibrator


def split_and_merged(whole: Calibrator, seed: int) -> Calibrator:
    """Let ``whole`` observe random batches, and return the merger of 2 to 8 like it that shared them."""
    draw = random.Random(seed)
    parts = [type(whole).from_state(whole.state()) for _ in range(draw.randint(2, 8))]
    for index in range(draw.randint(1, 12)):
        x = random_batch(1000 * seed + index)
        whole.observe(x)
        number = draw.randrange(len(parts))
        parts[number].observe(x)
        parts[number] = in_transit(parts[number], draw)
    while len(parts) > 1:
        draw.shuffle(parts)
        parts[-1].merge(parts.pop(0))
        parts[-1] = in_transit(parts[-1], draw)
    return parts[0]


def assert_same_state(calibrator: Calibrator, expected: Calibrator) -> None:
    found, wanted = calibrator.state(), expected.state()
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("skip_zeros", [False, True], ids=["zeros", "no zeros"])
@pytest.mark.parametrize("num_bins", [8, 300])
def test_histograms_of_any_split_merge_to_the_one_that_saw_all(
    symmetric: bool, skip_zeros: bool, num_bins: int
) -> None:
    for seed in range(60):
        whole = HistogramCalibrator(num_bins=num_bins, skip_zeros=skip_zeros, symmetric=symmetric)
        merged = split_and_merged(whole, seed)
        assert isinstance(merged, HistogramCalibrator)
        assert_same_state(merged, whole)
        assert (merged.counts is None) == (whole.counts is None)
        if merged.counts is not None:
            assert torch.equal(merged.counts, whole.counts)  # type: ignore[arg-type]  # neither is None
            assert torch.equal(merged.edges, whole.edges)  # type: ignore[arg-type]


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("kind", [MaxCalibrator, MinMaxCalibrator])
def test_extremes_of_any_split_merge_to_the_one_that_saw_all(kind: type[MinMaxCalibrator], symmetric: bool) -> None:
    for seed in range(60):
        whole = kind(symmetric=symmetric)
        assert_same_state(split_and_merged(whole, seed), whole)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_a_histogram_holds_every_value_in_its_bin(symmetric: bool) -> None:
    # The property above compares fxq with itself; here each count is that of plain arithmetic on all values.
    for seed in range(30):
        data = [random_batch(1000 * seed + index).float().double() for index in range(5)]
        calibrator = HistogramCalibrator(num_bins=50, symmetric=symmetric)
        for x in data:
            calibrator.observe(x)
        if calibrator.counts is None or calibrator.edges is None:
            continue
        values, edges = torch.cat(data), calibrator.edges
        values = values.abs() if symmetric else values
        # Bins on the left of 0 include their left edge, and not their right one.
        right_of = torch.bucketize(values, edges, right=True) - 1
        left_of = torch.bucketize(values, edges) - 1
        place = torch.where(values < 0, left_of, right_of).clamp(0, len(edges) - 2)
        assert torch.equal(calibrator.counts, torch.bincount(place, minlength=len(edges) - 1))


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_merged_halves_fit_as_one_does(symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(5000, generator=generator).pow(3) * scale for scale in (0.1, 3.0, 1.0)]
    whole, first, rest = (HistogramCalibrator(symmetric=symmetric) for _ in range(3))
    for x in data:
        whole.observe(x)
    first.observe(data[0])
    for x in reversed(data[1:]):
        rest.observe(x)
    rest.merge(first)
    for method in METHODS:
        assert rest.fit(method) == whole.fit(method)


def test_merging_leaves_the_other_as_it_was() -> None:
    first, second = HistogramCalibrator(), HistogramCalibrator()
    first.observe(torch.tensor([1.0, 2.0]))
    second.observe(torch.tensor([30.0]))
    before = second.state()
    first.merge(second)
    first.observe(torch.tensor([500.0]))
    for name, tensor in second.state().items():
        assert torch.equal(tensor, before[name])


def test_histograms_that_differ_do_not_merge() -> None:
    with pytest.raises(CalibrationError, match="num_bins=2048 and num_bins=100"):
        HistogramCalibrator().merge(HistogramCalibrator(num_bins=100))
