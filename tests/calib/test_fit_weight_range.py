"""Ranges of weights by any method, a histogram for each channel, and max over blocks."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.calib import HistogramCalibrator, MaxCalibrator
from fxq.calib.weights import fit_weight_range
from fxq.errors import CalibrationError, RangeError
from fxq.nn import QuantConv2d, QuantConvTranspose2d, QuantLinear
from fxq.quant.descriptor import QuantDescriptor
from fxq.quant.float8 import fake_e4m3_quant


def weight_of(*shape: int, seed: int = 0) -> Tensor:
    """Return a weight whose channels differ in range and have a few outliers each."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-1, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return torch.randn(*shape, generator=generator) ** 3 * spread


def slow_percentile(channel: Tensor, percentile: float, num_bins: int) -> float:
    values = channel.abs().double().numpy()
    width = 2.0 ** np.floor(np.log2(values.max() / num_bins))
    counts, edges = np.histogram(values, bins=np.arange(np.ceil(values.max() / width) + 1) * width)
    return float(edges[np.searchsorted(np.cumsum(counts / counts.sum()), percentile / 100)])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_each_channel_has_the_percentile_of_its_own_histogram(axis: int) -> None:
    weight = weight_of(6, 40, 9)
    (amax,) = fit_weight_range(weight, QuantDescriptor(axis=axis), "percentile", 97.0, 512)
    expected = [slow_percentile(channel, 97.0, 512) for channel in weight.unbind(axis)]
    assert amax.shape == tuple(size if dim == axis % 3 else 1 for dim, size in enumerate(weight.shape))
    assert amax.flatten().tolist() == expected


@pytest.mark.parametrize("method", ["max", "mse", "entropy"])
def test_every_method_fits_each_channel_like_a_tensor_of_its_own(method: str) -> None:
    weight = weight_of(3, 2000)
    (amax,) = fit_weight_range(weight, QuantDescriptor(axis=0, num_bits=6), method)
    for channel, fitted in zip(weight, amax, strict=True):
        alone = HistogramCalibrator(num_bits=6)
        alone.observe(channel)
        assert fitted == alone.fit(method)[1]


def test_a_dead_channel_has_range_zero_and_an_affine_descriptor_two_bounds() -> None:
    weight = weight_of(3, 50).abs()
    weight[1] = 0
    low, high = fit_weight_range(weight, QuantDescriptor(axis=0, symmetric=False), "max")
    assert (low.shape, high.shape) == ((3, 1), (3, 1))
    assert not low.any()
    assert high[1] == 0
    (amax,) = fit_weight_range(torch.empty(0), QuantDescriptor(), "mse")
    assert amax == 0


def test_what_has_no_histogram_is_refused() -> None:
    with pytest.raises(CalibrationError, match="unknown calibration method 'median'"):
        fit_weight_range(weight_of(2, 2), QuantDescriptor(), "median")
    for descriptor in (QuantDescriptor(axis=0, block_size=16), QuantDescriptor(axis=(0, 1))):
        with pytest.raises(CalibrationError, match="largest value only"):
            fit_weight_range(weight_of(2, 2), descriptor, "mse")


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(QuantConv2d(2, 4, 3), QuantConvTranspose2d(4, 5, 3), QuantLinear(7, 3))


def test_weights_of_a_model_are_fitted_by_the_calibrators_they_have() -> None:
    layers = model()
    fxq.calibrate_weights(layers)
    for layer, axis in zip(layers, (0, 1, 0), strict=True):
        others = [dim for dim in range(layer.weight.dim()) if dim != axis]
        assert torch.equal(layer.weight_quantizer.amax, layer.weight.abs().amax(others, keepdim=True))


@pytest.mark.parametrize("method", ["percentile", "mse", "max"])
@pytest.mark.parametrize("perchannel", [True, False])
def test_weights_of_a_model_are_fitted_by_the_method_asked_for(method: str, perchannel: bool) -> None:
    layers = model()
    fxq.calibrate_weights(layers, method=method, perchannel=perchannel, percentile=95.0, num_bins=256)
    for layer, axis in zip(layers, (0, 1, 0), strict=True):
        descriptor = QuantDescriptor(axis=axis if perchannel else None)
        (expected,) = fit_weight_range(layer.weight, descriptor, method, 95.0, 256)
        assert torch.equal(layer.weight_quantizer.amax, expected)


def test_one_range_without_a_method_is_the_largest_value() -> None:
    layers = model()
    fxq.calibrate_weights(layers, perchannel=False)
    assert layers[2].weight_quantizer.amax == layers[2].weight.abs().max()


def test_scale_amax_multiplies_and_fixed_or_disabled_ranges_stay() -> None:
    scaled = QuantLinear(7, 3, quant_desc_weight=QuantDescriptor(axis=0, scale_amax=0.5))
    fixed = QuantLinear(7, 3, quant_desc_weight=QuantDescriptor(amax=9.0))
    disabled = QuantLinear(7, 3)
    disabled.weight_quantizer.disable()
    fxq.calibrate_weights(nn.Sequential(scaled, fixed, disabled), method="max")
    assert torch.equal(scaled.weight_quantizer.amax, scaled.weight.abs().amax(1, keepdim=True) * 0.5)
    assert fixed.weight_quantizer.amax == 9.0
    assert not disabled.weight_quantizer.has_range


def test_a_weight_that_cannot_be_fitted_is_named() -> None:
    layers = model()
    with torch.no_grad():
        layers[1].weight[0, 0] = torch.nan
    with pytest.raises(CalibrationError, match=r"weight of '1'.*NaN"):
        fxq.calibrate_weights(layers, method="percentile")
    layers[1].weight.data.zero_()
    with pytest.raises(CalibrationError, match="unknown calibration method 'sum'"):
        fxq.calibrate_weights(layers, method="sum")


def test_max_over_blocks_streams_and_merges() -> None:
    first, second = weight_of(3, 40), weight_of(3, 40, seed=1)
    whole, half = (MaxCalibrator(4, axis=0, block_size=16) for _ in range(2))
    whole.observe(first)
    whole.observe(second)
    half.observe(second)
    merged = MaxCalibrator(4, axis=0, block_size=16)
    merged.observe(first)
    merged.merge(half)
    largest = torch.maximum(first.abs(), second.abs())
    expected = torch.stack([part.amax(1) for part in largest.split(16, 1)], 1)
    assert torch.equal(whole.fit()[1], expected)
    assert torch.equal(merged.fit()[1], expected)
    with pytest.raises(CalibrationError, match="block_size=16 and block_size=None"):
        merged.merge(MaxCalibrator(4, axis=0))
    with pytest.raises(RangeError, match="shape"):
        whole.observe(torch.ones(3, 4, 4))


def test_mse_of_float8_rounds_as_float8_does() -> None:
    calibrator = HistogramCalibrator(num_bits=(4, 3))
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(2)) ** 3
    calibrator.observe(x)
    _, amax = calibrator.fit("mse", stride=8)
    centres = (calibrator.edges[1:] + calibrator.edges[:-1]).float() / 2
    candidates = centres[128::8]
    errors = [
        float(((fake_e4m3_quant(centres, top) - centres).double() ** 2 * calibrator.counts).sum()) for top in candidates
    ]
    assert amax == candidates[int(np.argmin(errors))]
