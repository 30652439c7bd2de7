"""fxq.compat's HistogramCalibrator: the bins of pytorch-quantization, against torch.histc and numpy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fxq import calib as own
from fxq.compat.pytorch_quantization import calib
from fxq.compat.pytorch_quantization.calib.histogram import MAX_BINS
from fxq.errors import CalibrationError, RangeError

METHODS = ["max", "percentile", "mse", "entropy"]


def laplace(seed: int, number: int = 20_000) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, (number,), generator=generator) * 2 - 1
    return torch.empty(number).exponential_(generator=generator) * sign


def histogram_of(*data: Tensor, num_bins: int = 2048, skip_zeros: bool = False) -> tuple[Tensor, Tensor]:
    calibrator = calib.HistogramCalibrator(8, None, False, num_bins, skip_zeros=skip_zeros)
    for x in data:
        calibrator.collect(x)
    assert calibrator.counts is not None
    assert calibrator.edges is not None
    assert len(calibrator.edges) == len(calibrator.counts) + 1
    return calibrator.counts, calibrator.edges


def original_histogram(data: list[Tensor], num_bins: int) -> Tensor:
    """Return the counts of pytorch-quantization 2.2 (torch_hist=True), added up in integers."""
    counts, width = torch.zeros(0, dtype=torch.int64), 0.0
    for x in data:
        top = float(x.abs().max())
        if not width:
            width, size, end = top / num_bins, num_bins, top
        elif top > end:
            size = int(np.ceil(top / width))
            end = size * width
        new = torch.histc(x.abs(), bins=size, min=0, max=end).long()
        new[: len(counts)] += counts
        counts = new
    return counts


def test_first_batch_sets_the_bins_and_counts_what_torch_histc_counts() -> None:
    x = laplace(0)
    counts, edges = histogram_of(x)
    assert counts.dtype == torch.int64
    assert edges[0] == 0
    assert edges[-1] == x.abs().max()
    assert torch.equal(counts, torch.histc(x.abs(), bins=2048, min=0, max=float(x.abs().max())).long())


@pytest.mark.parametrize("seed", range(4))
def test_later_batches_add_whole_bins_of_the_same_width_and_move_no_count(seed: int) -> None:
    # Whole numbers over a range of whole bins: many values lie exactly on edges, and on the end of the range.
    generator = torch.Generator().manual_seed(seed)
    tops = [8, 8, 11, 4, 19, 19]
    data = [torch.randint(-top, top + 1, (200,), generator=generator).float() for top in tops]
    data[0][0], data[1][0], data[2][0] = 8.0, -8.0, 11.0
    counts, edges = histogram_of(*data, num_bins=8)
    assert counts.tolist() == original_histogram(data, num_bins=8).tolist()
    assert torch.equal(edges, torch.arange(len(edges), dtype=torch.float64))


def test_a_value_on_the_end_of_the_first_range_stays_in_its_bin() -> None:
    # torch.histc closes the last bin; the original adds its counts to the first bins of the wider histogram.
    counts, _ = histogram_of(torch.arange(0, 9.0), torch.tensor([8.0]), torch.tensor([8.0, 8.0, 10.5]), num_bins=8)
    assert counts.tolist() == [1] * 7 + [3, 2, 0, 1]


def test_growth_beyond_the_limit_joins_pairs_of_bins() -> None:
    x = laplace(5, number=3000)
    counts, edges = histogram_of(x, torch.tensor([1e6]), torch.tensor([3e38, 0.5]))
    assert len(counts) <= MAX_BINS
    assert counts.sum() == 3003
    assert edges[-1] >= 3e38
    small, width = histogram_of(x, x * 1.5)
    grown, grown_edges = histogram_of(x, x * 1.5, torch.tensor([float(x.abs().max()) * 200]))
    assert grown_edges[1] == 2 * width[1]
    joined = torch.nn.functional.pad(small, (0, len(small) % 2)).reshape(-1, 2).sum(1)
    assert torch.equal(grown[: len(joined)], joined)


def test_zero_batches_before_the_first_value_are_counted() -> None:
    x = laplace(8)
    calibrator = calib.HistogramCalibrator(8, None, False)
    calibrator.collect(torch.zeros(7, 3))
    for method in METHODS:
        assert calibrator.compute_amax(method) == 0
    calibrator.collect(x)
    assert calibrator.counts is not None
    assert torch.equal(calibrator.counts, histogram_of(x, torch.zeros(21))[0])
    relu = torch.relu(x)
    assert torch.equal(histogram_of(torch.zeros(5), relu, skip_zeros=True)[0], histogram_of(relu[relu > 0])[0])


def test_counts_go_beyond_what_float32_can_count() -> None:
    # A float32 counter, which is what torch.histc gives, stops at 2^24.
    counts, _ = histogram_of(torch.ones(2**20).expand(20, -1), torch.tensor([1.0, 2.0]))
    assert (counts.sum(), counts[2047], counts[2048], counts[-1]) == (20 * 2**20 + 2, 20 * 2**20, 1, 1)


def test_its_histograms_do_not_merge_and_fxqs_own_do_not_merge_with_them() -> None:
    histogram = calib.HistogramCalibrator(8, None, False)
    with pytest.raises(CalibrationError, match=r"they do not merge: collect all data in one, or take fxq\.calib\.Hist"):
        histogram.merge(histogram)
    with pytest.raises(CalibrationError, match=r"cannot merge a fxq\.compat\S+ into a fxq\.calib\.hist"):
        own.HistogramCalibrator().merge(histogram)


def test_every_method_takes_the_options_of_all_and_a_percentile_is_checked_without_data() -> None:
    histogram = calib.HistogramCalibrator(8, None, False)
    with pytest.raises(RangeError, match="Invalid percentile"):
        histogram.compute_amax("percentile", percentile=200)
    histogram.collect(laplace(1))
    assert histogram.edges is not None
    amax = histogram.compute_amax("mse", percentile=50.0, start_bin=1500)
    assert amax is not None
    assert amax > histogram.edges[1500]  # the best of all candidates is far below
