"""The functions under every quantizer, against slow float64 references and torch's own kernels."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fxq.errors import DescriptorError, FxqError, RangeError, UnsignedInputError
from fxq.quant.affine import (
    affine_dequant,
    affine_params,
    affine_quant,
    fake_affine_quant,
    fake_symmetric_quant,
    fake_tensor_quant,
    symmetric_inverse_scale,
    symmetric_scale,
    tensor_quant,
)
from fxq.quant.descriptor import integer_bounds

FORMATS = [
    pytest.param(8, False, False, id="int8"),
    pytest.param(8, False, True, id="int8-narrow"),
    pytest.param(8, True, False, id="uint8"),
    pytest.param(2, False, False, id="int2"),
    pytest.param(4, True, False, id="uint4"),
    pytest.param(16, False, True, id="int16-narrow"),
]


def slow_codes(inputs: Tensor, scale: Tensor, bounds: tuple[int, int]) -> Tensor:
    return torch.round(inputs.double() * scale.double()).clamp(*bounds)


def away_from_ties(inputs: Tensor, scale: Tensor) -> Tensor:
    # A float32 product rounds to a tie, or off it, within a few units of its last place.
    exact = inputs.double() * scale.double()
    return (exact - exact.floor() - 0.5).abs() > 1e-6 * exact.abs().clamp(min=1)


def test_the_guide_of_pytorch_quantization_gets_its_numbers() -> None:
    torch.manual_seed(12345)
    x = torch.rand(10)
    codes, scale = tensor_quant(x, x.abs().max())
    assert codes.tolist() == [126, 113, 127, 59, 11, 23, 47, 73, 43, 27]
    assert round(scale.item(), 4) == 128.0057
    expected = torch.tensor([0.9843, 0.8828, 0.9921, 0.4609, 0.0859, 0.1797, 0.3672, 0.5703, 0.3359, 0.2109])
    torch.testing.assert_close(fake_tensor_quant(x, x.abs().max()), expected, atol=5e-5, rtol=0)  # four printed digits


@pytest.mark.parametrize(("num_bits", "unsigned", "narrow"), FORMATS)
def test_codes_are_those_of_a_float64_reference(num_bits: int, unsigned: bool, narrow: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4096, generator=generator)
    x = x.abs() if unsigned else x
    amax = torch.tensor(1.7)
    codes, scale = tensor_quant(x, amax, num_bits, unsigned, narrow)
    bounds = integer_bounds(num_bits, unsigned, narrow)
    checked = away_from_ties(x, scale)
    assert checked.float().mean() > 0.9
    assert torch.equal(codes[checked].double(), slow_codes(x, scale, bounds)[checked])
    assert codes.min() >= bounds[0]
    assert codes.max() == bounds[1]
    assert torch.equal(fake_tensor_quant(x, amax, num_bits, unsigned, narrow), codes / scale)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_channel_is_quantized_like_a_tensor_of_its_own(axis: int) -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2))
    amax = x.abs().amax([dim for dim in range(3) if dim != axis], keepdim=True)
    together = fake_tensor_quant(x, amax)
    for index in range(x.shape[axis]):
        alone = fake_tensor_quant(x.select(axis, index), amax.flatten()[index])
        assert torch.equal(together.select(axis, index), alone)


def test_rounding_is_half_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    codes, _ = tensor_quant(x, 127.0)
    assert codes.tolist() == [0, 2, 2, 0, -2, -2]


def test_full_range_has_one_code_more_than_narrow() -> None:
    x = torch.tensor([-2.0])
    assert tensor_quant(x, 1.0, narrow_range=False)[0].item() == -128
    assert tensor_quant(x, 1.0, narrow_range=True)[0].item() == -127


def test_scale_is_a_float32_division_of_tensors() -> None:
    amax = torch.rand(1000, generator=torch.Generator().manual_seed(3)) + 0.01
    exact = 127.0 / amax.double()
    assert torch.equal(symmetric_inverse_scale(amax, 127), exact.float())
    assert torch.equal(symmetric_scale(amax, 127), (amax.double() / 127).float())


@pytest.mark.parametrize("amax", [0.0, 2.0**-24])
def test_too_small_a_range_codes_zero_with_scale_one(amax: float) -> None:
    x = torch.tensor([0.0, 5.0, -5.0, torch.inf, torch.nan])
    codes, scale = tensor_quant(x, amax)
    fake = fake_tensor_quant(x, amax)
    for result in (codes, fake):
        assert torch.equal(result[:4], torch.zeros(4))
        assert result[4].isnan()
    assert scale.item() == 1.0
    assert symmetric_scale(torch.tensor(amax), 127).item() == 1.0


def test_one_dead_channel_leaves_the_others_alone() -> None:
    x = torch.tensor([[0.0, 0.0], [0.5, 1.0]])
    fake = fake_tensor_quant(x, torch.tensor([[0.0], [1.0]]), narrow_range=False)
    assert torch.equal(fake[0], torch.zeros(2))
    assert fake[1, 1].item() == 1.0


def test_nan_stays_nan_and_infinity_saturates() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf])
    fake = fake_tensor_quant(x, 1.0)
    assert fake[0].isnan()
    assert fake[1:].tolist() == [1.0, -1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(4)).to(dtype)
    amax = x.abs().max()
    fake = fake_tensor_quant(x, amax)
    assert fake.dtype == dtype
    assert torch.equal(fake, fake_tensor_quant(x.float(), amax.float()).to(dtype))
    codes, scale = tensor_quant(x, amax)
    assert (codes.dtype, scale.dtype) == (dtype, torch.float32)
    assert torch.equal(codes.float(), tensor_quant(x.float(), amax.float())[0])


@pytest.mark.parametrize(
    "function", [fake_tensor_quant, lambda x, amax: tensor_quant(x, amax)[0]], ids=["fake", "codes"]
)
def test_gradient_passes_up_to_and_including_the_boundary(function) -> None:
    x = torch.tensor([-1.001, -1.0, -0.3, 0.0, 1.0, 1.001], requires_grad=True)
    function(x, 1.0).backward(torch.arange(1.0, 7.0))
    assert x.grad is not None
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 0]


def test_gradient_of_half_precision_keeps_its_dtype() -> None:
    x = torch.tensor([0.5, 3.0], dtype=torch.float16, requires_grad=True)
    fake_tensor_quant(x, 1.0).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float16
    assert x.grad.tolist() == [1.0, 0.0]


def test_the_input_is_not_modified() -> None:
    x = torch.randn(16, generator=torch.Generator().manual_seed(5))
    before = x.clone()
    fake_tensor_quant(x, 0.5)
    fake_affine_quant(x, torch.tensor(0.1), torch.tensor(3.0), 0, 255)
    assert torch.equal(x, before)


@pytest.mark.parametrize("function", [tensor_quant, fake_tensor_quant])
def test_invalid_arguments_are_refused(function) -> None:
    x = torch.tensor([[-1.0, 1.0]])
    with pytest.raises(UnsignedInputError, match="Negative values encountered in unsigned quantization") as caught:
        function(x, 1.0, unsigned=True, narrow_range=False)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(RangeError, match="Negative values in amax") as refused:
        function(x, -1.0)
    assert isinstance(refused.value, ValueError)
    assert isinstance(refused.value, FxqError)
    with pytest.raises(RangeError, match="does not broadcast"):
        function(x, torch.ones(3))
    with pytest.raises(RangeError, match="does not broadcast"):
        function(x, torch.ones(4, 2))


def test_an_empty_tensor_stays_empty() -> None:
    assert fake_tensor_quant(torch.empty(0, 3), 1.0, unsigned=True, narrow_range=False).shape == (0, 3)


@pytest.mark.parametrize(("lo", "hi"), [(-128, 127), (0, 255), (0, 127)])
def test_affine_values_are_those_of_torch(lo: int, hi: int) -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(6))
    # torch multiplies by 1 / step and we divide; with a power of two both are exact.
    step, zero_point = torch.tensor(2.0**-6), torch.tensor(float((lo + hi) // 3))
    expected = torch.fake_quantize_per_tensor_affine(x, step.item(), int(zero_point), lo, hi)
    assert torch.equal(fake_affine_quant(x, step, zero_point, lo, hi), expected)


def test_affine_channels_are_those_of_torch() -> None:
    x = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(7))
    step, zero_point = torch.tensor([0.25, 0.125, 0.0625]), torch.tensor([100.0, 128.0, 3.0])
    expected = torch.fake_quantize_per_channel_affine(x, step, zero_point.int(), 1, 0, 255)
    assert torch.equal(fake_affine_quant(x, step.view(1, 3, 1), zero_point.view(1, 3, 1), 0, 255), expected)


@pytest.mark.parametrize("needs_grad", [False, True])
def test_affine_gradient_is_that_of_torch(needs_grad: bool) -> None:
    x = torch.linspace(-3, 3, 101)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    values = fake_affine_quant(ours if needs_grad else x, torch.tensor(2.0**-6), torch.tensor(64.0), 0, 255)
    expected = torch.fake_quantize_per_tensor_affine(theirs, 2.0**-6, 64, 0, 255)
    assert torch.equal(values, expected)
    if needs_grad:
        values.sum().backward()
        expected.sum().backward()
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_affine_range_is_widened_to_hold_zero_exactly() -> None:
    step, zero_point = affine_params(torch.tensor([0.5, -3.0, -1.0]), torch.tensor([2.55, -0.5, 1.55]), 0, 255)
    torch.testing.assert_close(step, torch.tensor([0.01, 3.0 / 255, 0.01]))
    assert zero_point.tolist() == [0, 255, 100]
    assert torch.equal(fake_affine_quant(torch.zeros(3), step, zero_point, 0, 255), torch.zeros(3))


def test_affine_zero_range_has_step_one() -> None:
    step, zero_point = affine_params(torch.tensor(0.0), torch.tensor(0.0), -128, 127)
    assert (step.item(), zero_point.item()) == (1.0, -128.0)


def test_affine_codes_come_back_within_half_a_step() -> None:
    x = torch.rand(1000, generator=torch.Generator().manual_seed(8)) * 5 - 2
    step, zero_point = affine_params(x.min(), x.max(), 0, 255)
    codes = affine_quant(x, step, zero_point, 0, 255)
    assert (codes.min() >= 0, codes.max() <= 255) == (True, True)
    # The zero point is rounded, so the ends may be clipped by up to half a step more.
    assert (affine_dequant(codes, step, zero_point) - x).abs().max() <= step * 1.0001
    inside = (x > x.min() + step) & (x < x.max() - step)
    assert (affine_dequant(codes, step, zero_point) - x)[inside].abs().max() <= step * 0.5001  # float32 rounding


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [(1.0, -1.0, "empty"), (-torch.inf, 1.0, "not finite"), (0.0, torch.nan, "not finite")],
)
def test_affine_range_that_cannot_be_is_refused(low: float, high: float, message: str) -> None:
    with pytest.raises(RangeError, match=message):
        affine_params(torch.tensor(low), torch.tensor(high), 0, 255)


def test_unchecked_unsigned_codes_negative_inputs_as_zero() -> None:
    assert fake_symmetric_quant(torch.tensor([-1.0, 0.5]), torch.tensor(1.0), (0, 255))[0].item() == 0


@pytest.mark.parametrize("num_bits", [1, 17, True, 8.0])
def test_bits_out_of_range_are_refused(num_bits: Any) -> None:
    with pytest.raises(DescriptorError, match="2 to 16"):
        fake_tensor_quant(torch.ones(3), 1.0, num_bits)
