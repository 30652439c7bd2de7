"""What the accuracy passes ask of a layer, and of a tensor that no layer reads, for a range or for factors."""

import pytest
import torch
from torch import nn

import fxq
from fxq.graph.observers import ranged
from fxq_passes.accuracy.layer_matrix import LayerMatrix
from fxq_passes.accuracy.reader import Extremes, Reader, halves
from fxq_passes.accuracy.spectrum import Spectrum, reaches


def quantizer(amax: float) -> fxq.TensorQuantizer:
    found = fxq.TensorQuantizer(fxq.QuantDescriptor())
    found.amax = amax
    return found


def test_halves_are_of_samples_wherever_batches_end() -> None:
    x = torch.arange(7.0).reshape(7, 1)
    first, second = halves(list(x.split(3)))
    assert torch.cat(first).flatten().tolist() == [0, 1, 2, 3]
    assert torch.cat(second).flatten().tolist() == [4, 5, 6]


def test_a_value_without_batch_dimension_is_one_sample() -> None:
    values = [torch.randn(4, 9) for _ in range(4)]  # (channels, length)
    first, second = halves(values, axis=-2)
    assert first == values[:2]
    assert second == values[2:]
    assert halves(values[:1], axis=-2) == (values[:1], values[:1])


def test_the_error_of_a_layer_is_that_of_its_outputs() -> None:
    """Against the layer itself; the weight stays in float."""
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(8, 3, 6, 6)
    matrix = LayerMatrix.of(layer)
    assert matrix is not None
    reader, rounded = Reader(matrix, list(x.split(3)), 10**6), quantizer(1.5)
    with torch.no_grad():
        wanted, found = layer(x), layer(rounded(x))
    errors = (found - wanted)[:4].movedim(1, 0).flatten(1)
    variance = wanted.movedim(1, 0).flatten(1).var(1, correction=0).sum()
    expected = errors.var(1, correction=0).sum() / variance
    assert reader.error(rounded, None, 0) == pytest.approx(float(expected), rel=1e-3)
    assert reader.error(None, None, 0) == 0


def test_the_error_counts_behind_what_the_tensor_goes_through() -> None:
    """Against the layer itself; factors are taken back before the hard swish, and the padding stays 0."""
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3, padding=1), 3 * torch.randn(8, 3, 6, 6)
    matrix, rounded, scale_c = LayerMatrix.of(layer), quantizer(2.0), torch.tensor([0.5, 1.0, 4.0])
    assert matrix is not None
    reader = Reader(matrix, list(x.split(3)), 10**6, nn.functional.hardswish)
    by_channel = scale_c.reshape(3, 1, 1)
    with torch.no_grad():
        wanted = layer(nn.functional.hardswish(x))
        found = layer(nn.functional.hardswish(rounded(x / by_channel) * by_channel))
    errors = (found - wanted)[:4].movedim(1, 0).flatten(1)
    variance = wanted.movedim(1, 0).flatten(1).var(1, correction=0).sum()
    expected = errors.var(1, correction=0).sum() / variance
    assert reader.error(rounded, scale_c, 0) == pytest.approx(float(expected), rel=1e-3)


def test_each_channel_of_a_depthwise_layer_counts_alike() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 2, 40)
    matrix = LayerMatrix.of(nn.Conv1d(2, 2, 1, groups=2))
    assert matrix is not None
    errors = []
    for factor in (1.0, 0.01):
        x[:, 1] = factor * x[:, 0]
        errors.append(Reader(matrix, [x], 10**6).error(quantizer(float(x.abs().max())), None, 0))
    assert errors[1] > 100 * errors[0]  # of the small one nothing is left


def test_what_few_samples_reached_may_reach_further() -> None:
    x = torch.ones(16, 3)
    x[:, 1] = 0.01
    x[:, 2] = 0
    x[5, 2] = 0.01
    expected_c = Extremes.of([x], -1).expected()
    assert expected_c.tolist() == pytest.approx([1, (16 * 0.01 + 0.5) / 16.5, (0.01 + 0.5) / 1.5])
    assert Extremes.of([x], -1).expected(1)[2] == 1  # of which the second half saw nothing


@pytest.mark.parametrize("amax", [0.7, 3.0])
def test_the_error_of_a_tensor_is_that_of_its_values(amax: float) -> None:
    torch.manual_seed(0)
    x, rounded = torch.randn(64, 500), quantizer(amax)
    found = Spectrum(list(x.split(10))).error(rounded, 1)
    expected = (rounded(x) - x)[32:].square().sum() / x.square().sum()
    assert found == pytest.approx(float(expected), rel=0.02)  # sixteen bins a code


def test_a_constant_tensor_has_an_error_too() -> None:
    x = torch.full((4, 3), 2.0)
    assert Spectrum([x]).error(quantizer(1.0), 0) == pytest.approx(
        0.125, rel=1e-3
    )  # half of what it is, squared, in a half
    assert reaches([x]) == [(0, 2), (0, 2)]


def test_a_range_of_ones_own_leaves_the_quantizer_as_it_is() -> None:
    given = quantizer(2.0)
    assert float(ranged(given, torch.tensor(-1.0), torch.tensor(1.0)).amax) == 1
    assert float(given.amax) == 2
