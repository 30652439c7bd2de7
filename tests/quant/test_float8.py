"""Float8 e4m3 against a table of all its numbers."""

import pytest
import torch

from fxq.errors import RangeError
from fxq.quant.float8 import e4m3_quant, fake_e4m3_quant


def all_numbers() -> torch.Tensor:
    """Every finite e4m3 number, from its bits: (-1)^s 2^(e-7) (1 + m/8), subnormal 2^-6 m/8."""
    positive = [2.0**-6 * m / 8 for m in range(8)]
    positive += [2.0 ** (e - 7) * (1 + m / 8) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)]
    return torch.tensor(sorted({*positive, *(-x for x in positive)}))


def test_every_number_of_the_format_is_exact() -> None:
    numbers = all_numbers()
    assert numbers.max() == 448
    assert torch.equal(fake_e4m3_quant(numbers), numbers)


def test_values_go_to_the_nearest_number_and_saturate() -> None:
    numbers = all_numbers()
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 200
    nearest = numbers[(x[:, None] - numbers).abs().argmin(1)]
    assert torch.equal(fake_e4m3_quant(x), nearest)


def test_ties_go_to_the_even_mantissa() -> None:
    assert fake_e4m3_quant(torch.tensor([17.0, 19.0, 21.0])).tolist() == [16, 20, 20]


def test_amax_is_mapped_to_the_largest_number() -> None:
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(1))
    amax = x.abs().amax(1, keepdim=True)
    scale = torch.tensor(448.0) / amax
    assert torch.equal(fake_e4m3_quant(x, amax), fake_e4m3_quant(x * scale) / scale)
    assert fake_e4m3_quant(torch.tensor(9.0), 2.0).item() == 2.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert torch.equal(fake_e4m3_quant(x, 3.0), fake_e4m3_quant(x.float(), 3.0).to(dtype))


def test_special_values_and_errors() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0])
    values = fake_e4m3_quant(x)
    assert values[0].isnan()
    assert values[1:].tolist() == [448, -448, 0]
    assert fake_e4m3_quant(torch.tensor(3.0), 0.0).item() == 0
    with pytest.raises(RangeError, match="Negative values in amax"):
        fake_e4m3_quant(x, -1.0)


def test_gradient_passes_up_to_and_including_the_boundary() -> None:
    x = torch.tensor([-2.1, -2.0, 0.1, 2.0, 2.1], requires_grad=True)
    fake_e4m3_quant(x, 2.0).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_codes_are_e4m3_numbers_and_the_scale_takes_them_back() -> None:
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(3))
    amax = x.abs().amax(1, keepdim=True)
    amax[2] = 0
    codes, scale = e4m3_quant(x, amax)
    assert torch.equal(codes, codes.to(torch.float8_e4m3fn).float())
    assert torch.equal(scale[2], torch.ones(1))
    assert torch.equal(codes / scale, fake_e4m3_quant(x, amax))
    assert e4m3_quant(torch.tensor([500.0, -0.3]))[0].tolist() == [448.0, -0.3125]
    assert e4m3_quant(x.half(), amax)[0].dtype == torch.float16
