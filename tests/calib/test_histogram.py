"""HistogramCalibrator: its bins, and what is counted in them."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fxq.calib import HistogramCalibrator
from fxq.errors import CalibrationError, DescriptorError

METHODS = ["max", "percentile", "mse", "entropy"]


def laplace(seed: int, number: int = 20_000, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, (number,), generator=generator) * 2 - 1
    return torch.empty(number).exponential_(generator=generator) * sign * scale


def histogram_of(*data: Tensor, **options: object) -> tuple[HistogramCalibrator, Tensor, Tensor]:
    calibrator = HistogramCalibrator(**options)  # type: ignore[arg-type]  # each test names valid options
    for x in data:
        calibrator.observe(x)
    assert calibrator.counts is not None
    assert calibrator.edges is not None
    assert len(calibrator.edges) == len(calibrator.counts) + 1
    return calibrator, calibrator.counts, calibrator.edges


def high_of(calibrator: HistogramCalibrator, method: str = "max") -> Tensor:
    bounds = calibrator.fit(method)
    assert bounds is not None
    return bounds[1]


@pytest.mark.parametrize("top", [1.0, 1.5, 1.999, 2.0, 3.0, 6.0, 1000.0, 1e-30])
@pytest.mark.parametrize("num_bins", [100, 2048])
def test_bins_are_a_power_of_two_wide_and_at_least_as_many_as_asked_for(top: float, num_bins: int) -> None:
    _, counts, edges = histogram_of(torch.tensor([0.3, 1.0]) * top, num_bins=num_bins)
    assert math.frexp(float(edges[1]))[0] == 0.5
    assert torch.equal(edges, torch.arange(len(edges)) * edges[1])
    # The last bin may reach beyond the range by less than its width.
    assert num_bins <= len(counts) <= 2 * num_bins
    assert edges[-2] < float(torch.tensor(top)) <= edges[-1]


@pytest.mark.parametrize("symmetric", [True, False])
def test_counts_are_numpys_over_the_same_edges(symmetric: bool) -> None:
    data = [laplace(1), laplace(2) * 1.7 + 0.3]
    _, counts, edges = histogram_of(*data, symmetric=symmetric, num_bins=100)
    values = torch.cat(data).abs() if symmetric else torch.cat(data)
    expected, _ = np.histogram(values.double().numpy(), bins=edges.numpy())
    assert counts.dtype == torch.int64
    assert counts.tolist() == expected.tolist()


def test_values_on_edges_are_counted_as_numpy_counts_them() -> None:
    x = torch.arange(0, 9, dtype=torch.float32)
    _, counts, edges = histogram_of(x, num_bins=8)
    assert edges.tolist() == list(range(9))
    assert counts.tolist() == np.histogram(x.numpy(), bins=edges.numpy())[0].tolist() == [1] * 7 + [2]


def test_affine_bins_of_mirrored_values_are_mirrored() -> None:
    x = torch.tensor([-8.0, -7.0, -0.5, 1.0, 2.0, 2.0, 3.5])
    _, counts, edges = histogram_of(x, symmetric=False, num_bins=8)
    _, mirrored, mirrored_edges = histogram_of(-x, symmetric=False, num_bins=8)
    assert torch.equal(mirrored.flip(0), counts)
    assert torch.equal(-mirrored_edges.flip(0), edges)


def test_a_range_that_grows_joins_bins_and_loses_no_count() -> None:
    x = laplace(5, number=3000)
    calibrator, counts, edges = histogram_of(x, torch.tensor([1e6]), torch.tensor([3e38, 0.5]))
    assert 2048 <= len(counts) <= 4096
    assert counts.sum() == 3003
    assert edges[-1] >= 3e38
    assert high_of(calibrator) == torch.tensor(3e38)
    assert (counts[0], counts[-1]) == (3002, 1)


@pytest.mark.parametrize("sign", [1, -1])
def test_affine_bins_of_one_sign_start_or_end_at_zero(sign: int) -> None:
    x = laplace(7).abs() * sign + sign
    _, counts, edges = histogram_of(x, symmetric=False)
    assert counts.sum() == x.numel()
    assert (edges[0] if sign > 0 else edges[-1]) == 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_batches_before_the_first_value_are_counted(symmetric: bool) -> None:
    x = laplace(8)
    calibrator = HistogramCalibrator(symmetric=symmetric)
    calibrator.observe(torch.zeros(7, 3))
    assert calibrator.counts is None
    for method in METHODS:
        assert calibrator.fit(method) == (0, 0)
    calibrator.observe(x)
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
        calibrator.observe(torch.tensor([1.0, value], dtype=torch.float64))
    assert calibrator.counts is not None
    assert torch.equal(calibrator.counts, counts)
    assert torch.equal(calibrator.edges, edges)  # type: ignore[arg-type]  # counts is not None, so neither are edges


def test_counts_go_beyond_what_float32_can_count() -> None:
    # A float32 counter stops at 2^24, which torch.histc's own result shows.
    x = torch.ones(2**20).expand(20, -1)
    calibrator, counts, edges = histogram_of(x, torch.tensor([1.0, 2.0]))
    assert counts.sum() == 20 * 2**20 + 2
    assert counts[edges[:-1] == 1] == 20 * 2**20 + 1
    assert high_of(calibrator) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_other_dtypes_count_as_their_float32_values(dtype: torch.dtype, symmetric: bool) -> None:
    x = laplace(12).to(dtype)
    calibrator, counts, edges = histogram_of(x, symmetric=symmetric)
    _, expected, expected_edges = histogram_of(x.float(), symmetric=symmetric)
    assert torch.equal(counts, expected)
    assert torch.equal(edges, expected_edges)
    assert high_of(calibrator, "mse").dtype == torch.float32


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
        assert high_of(calibrator) == x.max()


def test_arguments_that_make_no_histogram_are_refused() -> None:
    with pytest.raises(DescriptorError, match="a histogram is per tensor, got axis=0"):
        HistogramCalibrator(axis=0)
    with pytest.raises(DescriptorError, match="num_bins must be from 2"):
        HistogramCalibrator(num_bins=1)


def test_a_method_that_does_not_exist_and_an_option_that_it_lacks_are_refused() -> None:
    calibrator = histogram_of(laplace(21))[0]
    with pytest.raises(CalibrationError, match="unknown calibration method 'median'; choose one of entropy, max"):
        calibrator.fit("median")
    with pytest.raises(CalibrationError, match="unknown calibration method 'percentil'; did you mean 'percentile'"):
        calibrator.fit("percentil")
    with pytest.raises(CalibrationError, match="method 'mse' has no option 'percentile'; its options: stride, start"):
        calibrator.fit("mse", percentile=99.0)
