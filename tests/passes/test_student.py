"""The stand-ins of a model in training: their values are the model's, their gradients those of a float64 reference."""

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.graph import fit_weights
from fxq.nn import QuantConv2d, QuantLinear
from fxq_passes.accuracy.student import TrainedLayer, TrainedRange, weight_grid

FORMATS = {
    "symmetric": fxq.QuantDescriptor(num_bits=4, amax=1.0),
    "unsigned": fxq.QuantDescriptor(num_bits=4, unsigned=True, amax=1.0),
    "affine": fxq.QuantDescriptor(num_bits=4, symmetric=False, unsigned=True, range=(-0.5, 1.0)),
}


def reference(x: Tensor, t: Tensor, quantizer: fxq.TensorQuantizer) -> Tensor:
    """Quantize with all steps exp(t) times as long; straight through, in float64."""
    (low, high), (lo, hi), factor = quantizer.range, quantizer.descriptor.bounds, t.exp()
    is_symmetric = quantizer.descriptor.symmetric
    step = float(high) / hi if is_symmetric else float(high - low) / (hi - lo)
    zero_point = 0 if is_symmetric else round(lo - float(low) / step)
    scaled = x / (step * factor)
    codes = scaled + (scaled.round() - scaled).detach()
    return (codes.clamp(lo - zero_point, hi - zero_point)) * step * factor


@pytest.mark.parametrize("descriptor", FORMATS.values(), ids=FORMATS.keys())
def test_a_range_has_the_gradient_of_a_learned_step(descriptor: fxq.QuantDescriptor) -> None:
    quantizer = fxq.TensorQuantizer(descriptor)
    trained = TrainedRange(quantizer)
    trained.log_factor.data.fill_(0.1)
    low, high = (float(bound) for bound in quantizer.range)
    x = torch.linspace(0.01 if descriptor.unsigned and descriptor.symmetric else -1.97, 1.94, 301)
    # In the last half step before a bound the quantizer passes no gradient, and plain rounding does.
    half = 0.51 * float(quantizer.scale) * 1.11
    x = x[((x - 1.105 * low).abs() > half) & ((x - 1.105 * high).abs() > half)].requires_grad_()
    upstream = torch.randn(len(x), generator=torch.Generator().manual_seed(0))
    found = trained(x)
    (found * upstream).sum().backward()
    exact, t = x.detach().double().requires_grad_(), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    expected = reference(exact, t, quantizer)
    (expected * upstream.double()).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]
    torch.testing.assert_close(trained.log_factor.grad.double(), t.grad, rtol=1e-4, atol=1e-4)  # type: ignore[union-attr]
    assert trained.factor == pytest.approx(float(torch.tensor(0.1).exp()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def test_a_factor_near_one_counts_in_half_precision(dtype: torch.dtype) -> None:
    quantizer = fxq.TensorQuantizer(fxq.QuantDescriptor(num_bits=8, amax=1.0))
    trained = TrainedRange(quantizer)
    x = torch.linspace(-1, 1, 4001).to(dtype)
    trained.log_factor.data.fill_(1e-3)
    found = trained(x).detach()
    quantizer.amax = trained.factor
    assert found.dtype == dtype
    torch.testing.assert_close(found, quantizer(x), rtol=0.01, atol=1e-3)  # a rounding of the dtype
    assert float((found == quantizer(x)).float().mean()) > 0.99


LAYERS = {
    "linear": QuantLinear(6, 4, quant_desc_weight=fxq.QuantDescriptor(num_bits=4, axis=0)),
    "conv": QuantConv2d(2, 4, 3, padding=1, padding_mode="circular", bias=False),
    "affine": QuantLinear(6, 4, quant_desc_weight=fxq.QuantDescriptor(num_bits=4, axis=0, symmetric=False)),
    "per tensor": QuantLinear(6, 4, quant_desc_weight=fxq.QuantDescriptor(num_bits=4)),
    "blocks": QuantLinear(6, 4, quant_desc_weight=fxq.QuantDescriptor(num_bits=4, axis=0, block_size=16)),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_an_untrained_stand_in_is_the_layer(layer: QuantLinear | QuantConv2d) -> None:
    torch.manual_seed(0)
    nn.init.normal_(layer.weight)
    layer.input_quantizer.amax = 2.0  # type: ignore[union-attr]
    fit_weights(layer)
    x = torch.randn(3, 6) if isinstance(layer, QuantLinear) else torch.randn(3, 2, 5, 5)
    for trains_weight in (False, True):
        trained = TrainedLayer(layer, torch.ones(4), trains_weight)
        torch.testing.assert_close(trained(x), layer(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_codes_stay_in_bounds_and_on_the_grid(layer: QuantLinear | QuantConv2d) -> None:
    torch.manual_seed(0)
    nn.init.normal_(layer.weight)
    fit_weights(layer)
    trained = TrainedLayer(layer, torch.ones(4), trains_weight=True)
    assert trained.latent is not None
    before = layer.quantized_weight().detach()
    trained.latent.data.normal_(std=2)
    trained.keep_in_bounds()
    assert float(trained.latent.detach().abs().max()) == 1
    after = trained.weight().detach()
    scale, _, _, _ = weight_grid(layer)
    steps = (after - before) / scale
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert trained.moved == int((steps.round() != 0).sum()) > 0
    with torch.no_grad():
        layer.weight.copy_(after)
    torch.testing.assert_close(layer.quantized_weight(), after, rtol=0, atol=1e-6)


def test_the_gradient_passes_the_rounding_of_codes() -> None:
    torch.manual_seed(0)
    layer = QuantLinear(6, 4, quant_desc_weight=fxq.QuantDescriptor(num_bits=4, axis=0))
    layer.input_quantizer.amax = 2.0  # type: ignore[union-attr]
    fit_weights(layer)
    deviation_c = torch.tensor([1.0, 2.0, 0.5, 0.0])
    trained = TrainedLayer(layer, deviation_c, trains_weight=True)
    x, upstream = torch.randn(7, 6), torch.randn(7, 4)
    (trained(x) * upstream).sum().backward()
    read = layer.input_quantizer(x).double()  # type: ignore[misc]
    by_weight = upstream.double().T @ read
    scale, _, _, _ = weight_grid(layer)
    assert trained.latent is not None
    assert trained.latent.grad is not None
    assert trained.shift_c.grad is not None
    torch.testing.assert_close(trained.latent.grad.double(), by_weight * scale.double(), rtol=1e-5, atol=1e-6)
    expected_c = upstream.double().sum(0) * deviation_c.double()
    torch.testing.assert_close(trained.shift_c.grad.double(), expected_c, rtol=1e-5, atol=1e-6)
