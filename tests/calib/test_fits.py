"""The three fits against naive loops, and the defects of pytorch-quantization that they must not have."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fxq.calib import HistogramCalibrator
from fxq.calib.fits.entropy import fit_entropy, fit_entropy_affine, window_divergences
from fxq.calib.fits.mse import _symmetric_errors, bin_centres, fit_mse, fit_mse_affine
from fxq.calib.fits.percentile import fit_percentile, fit_percentile_affine
from fxq.errors import CalibrationError, RangeError
from fxq.quant.affine import affine_params, fake_affine_quant, fake_tensor_quant
from fxq.quant.descriptor import integer_bounds

FORMATS = [(8, False), (8, True), (4, False), (6, True), (16, False)]


def shape_of(name: str, seed: int, number: int = 30_000) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(number, generator=generator)
    shapes = {
        "normal": normal,
        "relu": torch.relu(normal),
        "relu6": (3 * normal).clamp(0, 6),
        "heavy": normal * torch.exp(torch.randn(number, generator=generator)),
        "few": (normal * 2).round(),
        "hardswish": torch.nn.functional.hardswish(3 * normal),
    }
    return shapes[name]


def histogram_of(x: Tensor, num_bins: int = 2048, symmetric: bool = True) -> tuple[Tensor, Tensor]:
    calibrator = HistogramCalibrator(num_bins=num_bins, symmetric=symmetric)
    calibrator.observe(x)
    assert calibrator.counts is not None
    assert calibrator.edges is not None
    return calibrator.counts, calibrator.edges


def naive_divergence(counts: Tensor, start: int, stop: int, groups: int) -> float:
    """KL(p || q) of one window, bin by bin in Python floats."""
    window = [float(count) for count in counts[start:stop]]
    p = list(window)
    p[0] += float(counts[:start].sum())
    p[-1] += float(counts[stop:].sum())
    group = [index * groups // len(window) if groups < len(window) else index for index in range(len(window))]
    mass, held = dict.fromkeys(group, 0.0), dict.fromkeys(group, 0)
    for index, count in enumerate(window):
        mass[group[index]] += count
        held[group[index]] += count > 0
    q = [mass[group[index]] / held[group[index]] if count > 0 else 0.0 for index, count in enumerate(window)]
    total_p, total_q = math.fsum(p), math.fsum(q)
    if total_q == 0 or any(p_j > 0 and q_j == 0 for p_j, q_j in zip(p, q, strict=True)):
        return math.inf
    terms = [
        p_j / total_p * math.log(p_j / total_p / (q_j / total_q)) for p_j, q_j in zip(p, q, strict=True) if p_j > 0
    ]
    return math.fsum(terms)


def with_neighbour_at_zero(counts: Tensor, zero: int = 0) -> Tensor:
    counts = counts.clone()
    counts[zero] = counts[zero + 1]
    return counts


@pytest.mark.parametrize("name", ["normal", "relu", "relu6", "heavy", "few"])
@pytest.mark.parametrize(("num_bits", "unsigned"), FORMATS)
def test_divergences_are_those_of_the_naive_loop(name: str, num_bits: int, unsigned: bool) -> None:
    counts = with_neighbour_at_zero(histogram_of(shape_of(name, seed=1), num_bins=300)[0])
    groups = 2 ** (num_bits - 1 + int(unsigned))
    stops = torch.arange(1, 301, 7)
    expected = torch.tensor([naive_divergence(counts, 0, int(stop), groups) for stop in stops], dtype=torch.float64)
    # float64 sums of 300 terms in another order
    torch.testing.assert_close(
        window_divergences(counts, torch.zeros_like(stops), stops, groups), expected, rtol=1e-9, atol=1e-12
    )


def test_divergences_of_windows_that_start_anywhere_are_those_of_the_naive_loop() -> None:
    counts = with_neighbour_at_zero(histogram_of(shape_of("heavy", seed=2), num_bins=300, symmetric=False)[0], 150)
    windows = [(start, stop) for start in range(0, 140, 13) for stop in range(start + 1, 301, 17)]
    starts, stops = torch.tensor(windows).unbind(1)
    expected = torch.tensor([naive_divergence(counts, *window, 32) for window in windows], dtype=torch.float64)
    # float64 sums of 300 terms in another order
    torch.testing.assert_close(window_divergences(counts, starts, stops, 32), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["normal", "relu", "heavy"])
def test_entropy_picks_what_the_naive_loop_picks(name: str) -> None:
    counts, edges = histogram_of(shape_of(name, seed=3), num_bins=1024)
    zeroed = with_neighbour_at_zero(counts)
    stops = list(range(128, 1025, 8))
    divergences = [naive_divergence(zeroed, 0, stop, 128) for stop in stops]
    last_minimum = max(index for index, value in enumerate(divergences) if value <= min(divergences))
    assert fit_entropy(counts, edges, stride=8) == float(edges[stops[last_minimum]])


def test_entropy_of_halves_at_1_and_3_is_3() -> None:
    calibrator = HistogramCalibrator()
    calibrator.observe(torch.tensor([1.0, 3.0]).repeat(500))
    # pytorch-quantization lets a NaN candidate win and gives 0.999.
    assert calibrator.fit("entropy") == (-3, 3)


def test_entropy_ignores_how_many_zeros_there_are() -> None:
    x = shape_of("relu", seed=4)
    counts, edges = histogram_of(torch.cat([x, torch.zeros(10**6)]))
    assert fit_entropy(counts, edges) == fit_entropy(*histogram_of(x))


def test_entropy_without_a_possible_candidate_is_an_error() -> None:
    counts, edges = histogram_of(torch.tensor([1.0, 3.0]))
    with pytest.raises(CalibrationError, match="no candidate range has a finite entropy: use stride=1"):
        fit_entropy(counts, edges, stride=7)


@pytest.mark.parametrize("name", ["normal", "relu6", "heavy", "few"])
@pytest.mark.parametrize(("num_bits", "unsigned"), FORMATS)
def test_mse_picks_what_a_loop_over_the_fake_quantizer_picks(name: str, num_bits: int, unsigned: bool) -> None:
    counts, edges = histogram_of(shape_of(name, seed=5), num_bins=512)
    centres = bin_centres(edges)
    errors = []
    for amax in centres[128::3]:
        quantized = fake_tensor_quant(centres, amax, num_bits, unsigned)
        errors.append(float(((quantized.double() - centres.double()).square() * counts).sum()))
    assert fit_mse(counts, edges, num_bits, unsigned, stride=3) == float(centres[128 + 3 * errors.index(min(errors))])


def test_mse_errors_are_computed_from_the_quantizers_own_values() -> None:
    centres = torch.linspace(0, 5, 999)
    amax = torch.tensor([0.5, 3.3, 4.99])
    single = torch.eye(999, dtype=torch.float64)
    for index in range(0, 999, 97):
        expected = [fake_tensor_quant(centres[index], value) - centres[index].double() for value in amax]
        errors = _symmetric_errors(centres, single[index], amax, 127)
        assert torch.equal(errors, torch.stack(expected).square())


@pytest.mark.parametrize("percentile", [0, 1, 50, 99, 99.9, 99.99, 100])
def test_percentile_is_the_left_edge_of_the_bin_that_reaches_the_share(percentile: float) -> None:
    counts, edges = histogram_of(shape_of("heavy", seed=6))
    # numpy's own arithmetic, in pytorch-quantization's order: where the share is p exactly, its rounding decides.
    shares = np.cumsum(counts.numpy() / int(counts.sum()))
    assert fit_percentile(counts, edges, percentile) == edges[np.searchsorted(shares, percentile / 100)]


@pytest.mark.parametrize("percentile", [-0.1, 100.1, math.nan])
def test_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(RangeError, match=r"^Invalid percentile\. Must be in range 0 <= percentile <= 100\.$"):
        calibrated(shape_of("normal", seed=7)).fit("percentile", percentile=percentile)


def calibrated(x: Tensor, symmetric: bool = True) -> HistogramCalibrator:
    calibrator = HistogramCalibrator(symmetric=symmetric)
    calibrator.observe(x)
    return calibrator


def test_affine_percentile_leaves_half_of_the_rest_on_each_side() -> None:
    x = shape_of("normal", seed=8) * 2 + 1
    low, high = fit_percentile_affine(*histogram_of(x, symmetric=False), percentile=98)
    width = float(x.max() - x.min()) / 2048
    assert abs(float((x < low).double().mean()) - 0.01) < 2e-3
    assert abs(float((x > high).double().mean()) - 0.01) < 2e-3
    assert abs(high - float(x.quantile(0.99))) <= 2 * width
    assert abs(low - float(x.quantile(0.01))) <= 2 * width


@pytest.mark.parametrize("percentile", [50, 99, 99.99])
def test_affine_percentile_of_one_sign_is_the_symmetric_one(percentile: float) -> None:
    x = shape_of("heavy", seed=9).abs()
    amax = fit_percentile(*histogram_of(x), percentile)
    assert fit_percentile_affine(*histogram_of(x, symmetric=False), percentile) == (0, amax)
    low, high = fit_percentile_affine(*histogram_of(-x, symmetric=False), percentile)
    assert (low, high) == (-amax, 0)


def affine_error(x: Tensor, counts: Tensor, bounds: tuple[float, float], num_bits: int) -> float:
    lo, hi = integer_bounds(num_bits, True, False)
    step, zero_point = affine_params(torch.tensor(bounds[0]), torch.tensor(bounds[1]), lo, hi)
    quantized = fake_affine_quant(x, step, zero_point, lo, hi)
    return float(((quantized.double() - x.double()).square() * counts).sum())


@pytest.mark.parametrize("name", ["normal", pytest.param("heavy", marks=pytest.mark.slow), "hardswish"])
def test_affine_mse_is_close_to_the_best_of_all_pairs(name: str) -> None:
    counts, edges = histogram_of(shape_of(name, seed=10), num_bins=128, symmetric=False)
    centres = bin_centres(edges)
    best = min(
        affine_error(centres, counts, (float(low), float(high)), 4)
        for low in centres[centres < 0]
        for high in centres[centres >= 0]
    )
    found = affine_error(centres, counts, fit_mse_affine(counts, edges, 4, True, start_bin=4), 4)
    # A coordinate search ends in a local minimum; the error is bumpy by some percent from bin to bin.
    assert best <= found <= 1.05 * best


@pytest.mark.parametrize("sign", [1, -1])
def test_affine_mse_of_one_sign_tries_every_candidate(sign: int) -> None:
    counts, edges = histogram_of(sign * shape_of("heavy", seed=11).abs(), num_bins=512, symmetric=False)
    centres = bin_centres(edges)
    candidates = centres[128:] if sign > 0 else centres[:-128].flip(0)
    bounds = [(min(float(bound), 0.0), max(float(bound), 0.0)) for bound in candidates]
    errors = [affine_error(centres, counts, pair, 8) for pair in bounds]
    assert fit_mse_affine(counts, edges, 8, True) == bounds[errors.index(min(errors))]


def test_affine_entropy_of_one_sign_is_the_symmetric_unsigned_one() -> None:
    x = shape_of("heavy", seed=12).abs()
    amax = fit_entropy(*histogram_of(x), unsigned=True)
    assert fit_entropy_affine(*histogram_of(x, symmetric=False), unsigned=True) == (0, amax)
    low, high = fit_entropy_affine(*histogram_of(-x, symmetric=False), unsigned=True)
    # -x puts values on an edge into the bin on its other side
    assert high == 0
    assert low == pytest.approx(-amax, rel=0.02)


def test_affine_entropy_is_no_worse_than_the_whole_range_and_cuts_a_long_tail() -> None:
    x = torch.cat([shape_of("hardswish", seed=13), torch.tensor([60.0])])
    counts, edges = histogram_of(x, symmetric=False)
    low, high = fit_entropy_affine(counts, edges)
    assert high < 30
    zero = int((edges < 0).sum())
    zeroed = with_neighbour_at_zero(counts, zero)
    start, stop = int((edges < low).sum()), int((edges < high).sum())
    assert naive_divergence(zeroed, start, stop, 256) <= naive_divergence(zeroed, 0, len(counts), 256)


@pytest.mark.parametrize("method", ["max", "percentile", "mse", "entropy"])
@pytest.mark.parametrize("name", ["normal", "relu6", "heavy", "few", "hardswish"])
def test_every_method_gives_a_range_around_zero_inside_the_data(name: str, method: str) -> None:
    x = shape_of(name, seed=14)
    bounds = calibrated(x, symmetric=False).fit(method)
    assert bounds is not None
    slack = 1.001 * float(x.max() - x.min()) / 2048  # whole bins may reach beyond the data
    assert float(x.min()) - slack <= bounds[0] <= 0 <= bounds[1] <= float(x.max()) + slack
    assert bounds[1] > bounds[0]
    bounds = calibrated(x).fit(method)
    assert bounds is not None
    assert -bounds[0] == bounds[1] > 0


@pytest.mark.parametrize("fit", [fit_mse, fit_mse_affine, fit_entropy, fit_entropy_affine])
def test_candidates_that_do_not_exist_are_refused(fit: object) -> None:
    assert callable(fit)
    counts, edges = histogram_of(shape_of("normal", seed=15), num_bins=60, symmetric=False)
    with pytest.raises(RangeError, match="start_bin must be from 1 to"):
        fit(counts, edges)
    with pytest.raises(RangeError, match="stride must be 1 or more"):
        fit(counts, edges, stride=0, start_bin=10)
