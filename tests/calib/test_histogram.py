"""HistogramCalibrator: what is counted, how it grows and merges."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fxq.calib import HistogramCalibrator
from fxq.calib.bins import MAX_BINS
from fxq.errors import CalibrationError, DescriptorError

METHODS = ["max", "percentile", "mse", "entropy"]


def laplace(seed: int, number: int = 20_000, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, (number,), generator=generator) * 2 - 1
    return torch.empty(number).exponential_(generator=generator) * sign * scale


def histogram_of(*data: Tensor, **options: object) -> tuple[HistogramCalibrator, Tensor, Tensor]:
    calibrator = HistogramCalibrator(**options)  # type: ignore[arg-type]  # each test names valid options
    for x in data:
        calibrator.collect(x)
    assert calibrator.counts is not None
    assert calibrator.edges is not None
    assert len(calibrator.edges) == len(calibrator.counts) + 1
    return calibrator, calibrator.counts, calibrator.edges


def assert_numpy_agrees(counts: Tensor, edges: Tensor, values: Tensor) -> None:
    """Each cumulative count is numpy's, where no value lies within float32 rounding of the edge."""
    expected, _ = np.histogram(values.double().numpy(), bins=edges.numpy())
    rounding = 1e-6 * float(edges.abs().max())
    near = ((values.double()[:, None] - edges[None, 1:-1]).abs() < rounding).any(0)
    clear = torch.cat([~near, torch.tensor([True])])
    assert torch.equal(counts.cumsum(0)[clear], torch.from_numpy(expected).cumsum(0)[clear])
    assert clear.float().mean() > 0.5


def test_first_batch_sets_the_bins_and_counts_what_torch_histc_counts() -> None:
    x = laplace(0)
    _, counts, edges = histogram_of(x)
    assert counts.dtype == torch.int64
    assert edges[0] == 0
    assert edges[-1] == x.abs().max()
    expected = torch.histc(x.abs(), bins=2048, min=0, max=float(x.abs().max()))
    assert torch.equal(counts, expected.long())


def test_counts_agree_with_numpy_over_the_same_edges() -> None:
    x = laplace(1, number=2000)
    _, counts, edges = histogram_of(x, x * 1.7, num_bins=100)
    assert len(counts) == 170
    assert_numpy_agrees(counts, edges, torch.cat([x, x * 1.7]).abs())


def test_values_on_edges_are_counted_as_numpy_counts_them() -> None:
    x = torch.arange(0, 9, dtype=torch.float32)
    _, counts, edges = histogram_of(x, num_bins=8)
    assert counts.tolist() == np.histogram(x.numpy(), bins=edges.numpy())[0].tolist() == [1] * 7 + [2]


def test_a_value_on_the_end_of_the_first_range_stays_in_its_bin() -> None:
    # torch.histc closes the last bin; pytorch-quantization adds its counts to the first bins of the wider histogram.
    x, later = torch.arange(0, 9, dtype=torch.float32), torch.tensor([8.0, 8.0, 10.5])
    _, counts, _ = histogram_of(x, x[-1:], later, num_bins=8)
    first = torch.histc(x, bins=8, min=0, max=8) + torch.histc(x[-1:], bins=8, min=0, max=8)
    expected = torch.histc(later, bins=11, min=0, max=11)
    expected[:8] += first
    assert counts.tolist() == expected.tolist() == [1] * 7 + [3, 2, 0, 1]
    merged, grown = histogram_of(x, num_bins=8)[0], histogram_of(x[-1:], later, num_bins=8)[0]
    merged.merge(grown)
    assert merged.counts is not None
    assert merged.counts.tolist() == counts.tolist()


def test_a_larger_value_adds_whole_bins_and_moves_no_count() -> None:
    x = torch.linspace(0, 1, 5000)
    _, before, edges_before = histogram_of(x[:-1])
    _, after, edges_after = histogram_of(x[:-1], torch.tensor([3.3]))
    assert torch.equal(edges_after[: len(edges_before)], edges_before)
    assert torch.equal(after[: len(before) - 1], before[:-1])
    assert edges_after[-1] >= 3.3 > edges_after[-2]
    assert after.sum() == before.sum() + 1
    _, same, _ = histogram_of(x[:-1], x[:100])
    assert len(same) == 2048


def test_the_order_of_later_batches_does_not_matter() -> None:
    first, second, third = laplace(2), laplace(3) * 3, laplace(4) * 2
    for symmetric in (True, False):
        one = histogram_of(first, second, third, symmetric=symmetric)
        other = histogram_of(first, third, second, symmetric=symmetric)
        assert torch.equal(one[1], other[1])
        assert torch.equal(one[2], other[2])


def test_growth_beyond_the_limit_joins_pairs_of_bins() -> None:
    x = laplace(5, number=3000)
    calibrator, counts, edges = histogram_of(x, torch.tensor([1e6]), torch.tensor([3e38, 0.5]))
    assert len(counts) < MAX_BINS
    assert counts.sum() == 3003
    assert edges[-1] >= 3e38
    assert calibrator.compute_amax("max") == 3e38
    _, small, width = histogram_of(x, x * 1.5)
    _, grown, grown_edges = histogram_of(x, x * 1.5, torch.tensor([float(x.abs().max()) * 200]))
    ratio = int(torch.round(grown_edges[1] / width[1]))
    assert ratio == 2
    joined = torch.nn.functional.pad(small, (0, len(small) % 2)).reshape(-1, 2).sum(1)
    assert torch.equal(grown[: len(joined) - 1], joined[:-1])


def test_affine_bins_hold_zero_and_widen_on_both_ends() -> None:
    x = laplace(6, number=2000) + 0.3
    _, counts, edges = histogram_of(x, x * 1.5 - 0.7, symmetric=False, num_bins=100)
    values = torch.cat([x, x * 1.5 - 0.7])
    assert (edges == 0).any()
    assert edges[0] <= values.min() < edges[1]
    assert edges[-2] < values.max() <= edges[-1] * (1 + 1e-6)
    assert_numpy_agrees(counts, edges, values)


@pytest.mark.parametrize("sign", [1, -1])
def test_affine_bins_of_one_sign_start_or_end_at_zero(sign: int) -> None:
    x = laplace(7).abs() * sign + sign
    _, counts, edges = histogram_of(x, symmetric=False)
    assert len(counts) == 2048
    assert counts.sum() == x.numel()
    assert (edges[0] if sign > 0 else edges[-1]) == 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_batches_before_the_first_value_are_counted(symmetric: bool) -> None:
    x = laplace(8)
    calibrator = HistogramCalibrator(symmetric=symmetric)
    calibrator.collect(torch.zeros(7, 3))
    for method in METHODS:
        amax = calibrator.compute_amax(method)
        assert amax is not None
        assert amax == 0
    calibrator.collect(x)
    _, counts, edges = histogram_of(x, torch.zeros(21), symmetric=symmetric)
    assert calibrator.counts is not None
    assert torch.equal(calibrator.counts, counts)
    assert counts[edges[:-1] == 0] >= 21


@pytest.mark.parametrize("symmetric", [True, False])
def test_skip_zeros_drops_exact_zeros_only(symmetric: bool) -> None:
    x = torch.relu(laplace(9))
    x[:10] = 1e-30
    _, counts, _ = histogram_of(torch.zeros(5), x, -x, skip_zeros=True, symmetric=symmetric)
    _, expected, _ = histogram_of(x[x != 0], -x[x != 0], symmetric=symmetric)
    assert torch.equal(counts, expected)


def test_empty_tensors_are_ignored() -> None:
    x = laplace(10)
    _, counts, _ = histogram_of(torch.empty(0), x, torch.empty(2, 0, 3))
    assert torch.equal(counts, histogram_of(x)[1])


@pytest.mark.parametrize(("value", "seen"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (1e300, "infinity")])
def test_nan_and_infinity_are_refused_and_leave_no_trace(value: float, seen: str) -> None:
    x = laplace(11)
    calibrator, counts, edges = histogram_of(x)
    with pytest.raises(CalibrationError, match=f"the tensor holds {seen}"):
        calibrator.collect(torch.tensor([1.0, value], dtype=torch.float64))
    assert calibrator.counts is not None
    assert torch.equal(calibrator.counts, counts)
    assert torch.equal(calibrator.edges, edges)  # type: ignore[arg-type]  # counts is not None, so neither are edges


def test_counts_go_beyond_what_float32_can_count() -> None:
    # A float32 counter stops at 2^24, which torch.histc's own result shows.
    x = torch.ones(2**20).expand(20, -1)
    calibrator, counts, _ = histogram_of(x, torch.tensor([1.0, 2.0]))
    assert counts.sum() == 20 * 2**20 + 2
    assert counts[2047] == 20 * 2**20  # on the end of the first range
    assert counts[2048] == 1
    assert counts[-1] == 1
    assert calibrator.compute_amax("max") == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_other_dtypes_count_as_their_float32_values(dtype: torch.dtype, symmetric: bool) -> None:
    x = laplace(12).to(dtype)
    calibrator, counts, edges = histogram_of(x, symmetric=symmetric)
    _, expected, expected_edges = histogram_of(x.float(), symmetric=symmetric)
    assert torch.equal(counts, expected)
    assert torch.equal(edges, expected_edges)
    amax = calibrator.compute_amax("mse")
    assert amax is not None
    assert amax.dtype == torch.float32


def test_memory_order_and_chunks_do_not_matter() -> None:
    x = laplace(13, number=4 * 6 * 70 * 70).view(4, 6, 70, 70)
    _, counts, _ = histogram_of(x)
    for view in (x.to(memory_format=torch.channels_last), x.transpose(0, 3)):
        assert torch.equal(histogram_of(view)[1], counts)


def test_tiny_and_large_magnitudes_have_bins() -> None:
    for magnitude in (1e-44, 1e-38, 3e38):
        x = torch.tensor([0.25, 0.5, 1.0]) * magnitude
        calibrator, counts, _ = histogram_of(x, -x, num_bins=8)
        assert counts.sum() == 6
        assert calibrator.compute_amax("max") == x.max()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("agree", ["same_range", "twice_the_range"])
def test_merge_is_exact_when_the_first_ranges_agree(symmetric: bool, agree: str) -> None:
    first, second = laplace(14), laplace(15)
    bound = torch.tensor([-20.0, 20.0])
    ahead = bound if agree == "same_range" else bound / 2
    data = [bound, first, first * 3, torch.zeros(9)]
    more = [torch.zeros(3), ahead, second * 2, second * 5]
    calibrator = histogram_of(*data, symmetric=symmetric, num_bins=512)[0]
    other = histogram_of(*more, symmetric=symmetric, num_bins=512)[0]
    calibrator.merge(other)
    whole, expected, expected_edges = histogram_of(*data, *more, symmetric=symmetric, num_bins=512)
    assert torch.equal(calibrator.counts, expected)  # type: ignore[arg-type]  # collected, so not None
    assert torch.equal(calibrator.edges, expected_edges)  # type: ignore[arg-type]
    for method in METHODS:
        assert calibrator.compute_range(method) == whole.compute_range(method)


@pytest.mark.parametrize("symmetric", [True, False])
def test_merge_of_unequal_bins_keeps_the_wider_and_loses_no_count(symmetric: bool) -> None:
    data = [laplace(16, number=2000), laplace(17, number=2000)]
    more = [laplace(18, number=2000) * 0.37, laplace(19, number=2000) * 2]
    merged = histogram_of(*data, symmetric=symmetric)[0]
    other = histogram_of(*more, symmetric=symmetric)[0]
    narrow = float(other.edges[1] - other.edges[0])  # type: ignore[index]  # collected, so not None
    mirrored = histogram_of(*more, symmetric=symmetric)[0]
    mirrored.merge(merged)
    merged.merge(other)
    whole, expected, edges = histogram_of(*data, *more, symmetric=symmetric)
    assert merged.counts is not None
    assert torch.equal(merged.counts, mirrored.counts)  # type: ignore[arg-type]
    assert torch.equal(merged.edges, edges)  # type: ignore[arg-type]
    assert merged.counts.sum() == expected.sum()
    # An edge is off by half a narrow bin at most: what lies that near to it may be counted on the other side.
    values = torch.cat([*more])
    values = (values.abs() if symmetric else values).double()
    misplaced = ((values[:, None] - edges[None, 1:]).abs() <= 0.51 * narrow).sum(0)
    assert ((merged.counts.cumsum(0) - expected.cumsum(0)).abs() <= misplaced).all()
    assert merged.compute_amax("max") == whole.compute_amax("max")


def test_merge_with_zeros_only_or_nothing() -> None:
    x = laplace(20)
    zeros, empty = HistogramCalibrator(), HistogramCalibrator()
    zeros.collect(torch.zeros(5))
    calibrator = histogram_of(x)[0]
    calibrator.merge(empty)
    calibrator.merge(zeros)
    zeros.merge(histogram_of(x)[0])
    empty.merge(calibrator)
    expected = histogram_of(x, torch.zeros(5))[1]
    for merged in (calibrator, zeros, empty):
        assert torch.equal(merged.counts, expected)  # type: ignore[arg-type]  # collected, so not None
        merged.collect(x * 2)
    assert torch.equal(calibrator.counts, zeros.counts)  # type: ignore[arg-type]


def test_histograms_that_differ_do_not_merge() -> None:
    with pytest.raises(CalibrationError, match="num_bins=2048 and num_bins=100"):
        HistogramCalibrator().merge(HistogramCalibrator(num_bins=100))


def test_arguments_that_make_no_histogram_are_refused() -> None:
    with pytest.raises(DescriptorError, match="a histogram is per tensor, got axis=0"):
        HistogramCalibrator(axis=0)
    with pytest.raises(DescriptorError, match="grow_method 'stretch' does not exist"):
        HistogramCalibrator(grow_method="stretch")
    with pytest.raises(DescriptorError, match="num_bins must be from 2"):
        HistogramCalibrator(num_bins=1)
    with pytest.raises(CalibrationError, match="unknown calibration method 'median'; choose one of max, percentile"):
        histogram_of(laplace(21))[0].compute_amax("median")
