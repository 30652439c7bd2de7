"""Quantizers and calibrators give the same numbers on a GPU as on a CPU, bit for bit: they divide, round and count."""

import copy

import pytest
import torch
from torch import Tensor

import fxq
from fxq import QuantDescriptor, TensorQuantizer

pytestmark = pytest.mark.cuda

FORMATS = {
    "int8": QuantDescriptor(),
    "int8 per channel": QuantDescriptor(axis=0),
    "int8 narrow": QuantDescriptor(narrow_range=True),
    "int4": QuantDescriptor(num_bits=4),
    "int16": QuantDescriptor(num_bits=16),
    "uint8 affine": QuantDescriptor(unsigned=True, symmetric=False),
    "float8": QuantDescriptor(num_bits=(4, 3)),
    "learned": QuantDescriptor(learn_amax=True),
}


def values(dtype: torch.dtype = torch.float32) -> Tensor:
    """Return 64 x 257 values of many magnitudes, zeros and ties between two codes among them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 257, generator=generator) * torch.logspace(-3, 2, 257)
    x[:, 0], x[:, 1] = 0.0, torch.arange(64) / 2
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("descriptor", FORMATS.values(), ids=FORMATS)
def test_quantized_values_and_gradients_are_the_same(
    gpu: torch.device, descriptor: QuantDescriptor, dtype: torch.dtype
) -> None:
    found = []
    for device in (torch.device("cpu"), gpu):
        quantizer = TensorQuantizer(descriptor).to(device)
        x = values(dtype).to(device).requires_grad_()
        quantizer.enable_calib()
        quantizer.disable_quant()
        quantizer(x)
        quantizer.load_calib_amax()
        quantizer.disable_calib()
        quantizer.enable_quant()
        y = quantizer(x)
        y.float().sum().backward()
        found.append([tensor.detach().cpu() for tensor in (y, x.grad, *quantizer.range)])
    # Not the gradient of a learned range: it is a sum, which devices add in another order.
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))


@pytest.mark.parametrize("method", ["max", "percentile", "mse", "entropy"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_a_histogram_counts_and_fits_the_same(gpu: torch.device, method: str, symmetric: bool) -> None:
    descriptor = QuantDescriptor(unsigned=not symmetric, symmetric=symmetric, calibrator="histogram")
    ranges = []
    for device in (torch.device("cpu"), gpu):
        quantizer = TensorQuantizer(descriptor, if_quant=False, if_calib=True).to(device)
        for scale in (1.0, 0.1, 5.0):
            quantizer(values().to(device) * scale)
        quantizer.load_calib_amax(method=method)
        ranges.append([bound.cpu() for bound in quantizer.range])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*ranges, strict=True))


@pytest.mark.parametrize("name", ["max", "minmax", "moving_average"])
def test_running_ranges_are_the_same(gpu: torch.device, name: str) -> None:
    ranges = []
    for device in (torch.device("cpu"), gpu):
        quantizer = TensorQuantizer(QuantDescriptor(calibrator=name), if_quant=False, if_calib=True).to(device)
        for scale in (1.0, 0.1, 5.0):
            quantizer(values().to(device) * scale)
        quantizer.load_calib_amax()
        ranges.append(quantizer.range[1].cpu())
    # A moving average multiplies and adds; a GPU may fuse both into one rounding.
    torch.testing.assert_close(ranges[0], ranges[1], rtol=1e-6 if name == "moving_average" else 0, atol=0)


def test_weights_fit_the_same_by_every_method(gpu: torch.device) -> None:
    layer = fxq.nn.QuantLinear(257, 64)
    with torch.no_grad():
        layer.weight.copy_(values())
    other = copy.deepcopy(layer).to(gpu)
    for method in ("max", "percentile", "mse", "entropy"):
        fxq.calibrate_weights(layer, method)
        fxq.calibrate_weights(other, method)
        assert torch.equal(layer.weight_quantizer.amax, other.weight_quantizer.amax.cpu()), method
