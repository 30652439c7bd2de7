"""The affine functions by range: numbers, gradients and what they refuse. ONNX checks them in their own file."""

import pytest
import torch

from fxq.errors import DescriptorError, RangeError
from fxq.quant.affine import affine_params, fake_affine_quant
from fxq.quant.affine_range import affine_tensor_quant, fake_affine_tensor_quant


def test_codes_scale_and_zero_point_of_a_range() -> None:
    x = torch.tensor([-9.0, -1.0, 0.0, 0.5, 1.55, 9.0])
    codes, step, zero_point = affine_tensor_quant(x, -1.0, 1.55, unsigned=True)
    assert codes.tolist() == [0, 0, 100, 150, 255, 255]
    assert (round(step.item(), 6), zero_point.item()) == (0.01, 100)
    signed, _, signed_zero = affine_tensor_quant(x, -1.0, 1.55)
    assert (signed.tolist(), signed_zero.item()) == ([-128, -128, -28, 22, 127, 127], -28)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_fake_quantization_is_that_of_scale_and_zero_point(bits: int) -> None:
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(0)) + torch.tensor([[-1.0], [0.0], [1.0]])
    low, high = x.amin(1, keepdim=True) * 0.6, x.amax(1, keepdim=True) * 0.6
    bounds = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    expected = fake_affine_quant(x, *affine_params(low, high, *bounds), *bounds)
    assert torch.equal(fake_affine_tensor_quant(x, low, high, bits), expected)


def test_the_range_is_widened_to_hold_zero() -> None:
    x = torch.tensor([0.0, 1.0, 2.0])
    assert fake_affine_tensor_quant(x, 1.0, 2.0)[0] == 0
    assert torch.equal(fake_affine_tensor_quant(x, 1.0, 2.0), fake_affine_tensor_quant(x, 0.0, 2.0))


@pytest.mark.parametrize(
    "function",
    [fake_affine_tensor_quant, lambda *args: affine_tensor_quant(*args)[0]],
    ids=["fake_affine_tensor_quant", "affine_tensor_quant"],
)
def test_gradient_passes_from_bound_to_bound(function) -> None:
    x = torch.tensor([-1.01, -1.0, 0.0, 2.0, 2.01], requires_grad=True)
    function(x, -1.0, 2.0).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(1)).to(dtype)
    quantized = fake_affine_tensor_quant(x, -1.3, 1.7)
    assert quantized.dtype == dtype
    assert torch.equal(quantized, fake_affine_tensor_quant(x.float(), -1.3, 1.7).to(dtype))


def test_ranges_and_bits_that_cannot_be_are_refused() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(RangeError, match="empty"):
        fake_affine_tensor_quant(x, 1.0, -1.0)
    with pytest.raises(RangeError, match="not finite"):
        affine_tensor_quant(x, 0.0, float("inf"))
    with pytest.raises(RangeError, match=r"\(2,\) does not broadcast to inputs of shape \(2, 3\)"):
        fake_affine_tensor_quant(x, -torch.ones(2), torch.ones(2))
    with pytest.raises(RangeError, match=r"\(4, 2, 3\) does not broadcast"):
        fake_affine_tensor_quant(x, -torch.ones(4, 2, 3), torch.ones(4, 2, 3))
    with pytest.raises(DescriptorError, match="2 to 16"):
        fake_affine_tensor_quant(x, -1.0, 1.0, 1)
