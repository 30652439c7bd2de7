"""Fixed-point multipliers and the operators on integers, against exact fractions and slow sums in Python."""

import itertools
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from fxq.errors import GraphError
from fxq.integer.fixed_point import fixed_point
from fxq.quant.ops.integer_layers import integer_conv, integer_linear
from fxq.quant.ops.integer_math import integer_max_pool, integer_mul
from fxq.quant.ops.requantize import lookup, requantize


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("ratio", [0.3, 1 / 3, 0.0007, 5.5, 2.0**-40, 1.0, -0.25, 1 - 2**-40])
def test_a_multiplier_has_31_bits(ratio: float) -> None:
    (multiplier,), shift = fixed_point([number(ratio)], [number(255)], "here")
    assert 1 <= int(shift) <= 62
    assert abs(int(multiplier)) < 2**31
    error = abs(Fraction(int(multiplier)) / 2 ** int(shift) - Fraction(ratio))
    # 2^-31 of itself, or less than a sum of 31 bits notices.
    assert error <= max(abs(Fraction(ratio)) / 2**30, Fraction(1, 2**62))


def test_terms_share_a_shift_and_their_sum_fits_64_bits() -> None:
    ratios, bounds = [torch.tensor([1e-3, 40.0]).double(), number(0.7)], [number(2.0**31 - 1), number(2.0**31 - 1)]
    multipliers, shift = fixed_point(ratios, bounds, "here")
    for channel in range(2):
        assert sum(abs(int(m[channel])) * (2**31 - 1) for m in multipliers) < 2**62
        assert float(multipliers[1][channel]) / 2 ** int(shift[channel]) == pytest.approx(0.7, rel=1e-7)


def test_a_ratio_that_no_multiplier_holds_is_refused() -> None:
    with pytest.raises(GraphError, match=r"here: a step of what is added up is 3e\+10 steps of the result"):
        fixed_point([number(3e10)], [number(1)], "here")


@pytest.mark.parametrize(
    ("value", "expected"), [(1, 0), (2, 1), (3, 2), (5, 2), (6, 3), (7, 4), (-1, 0), (-3, -2), (-6, -3)]
)
def test_half_is_rounded_to_even(value: int, expected: int) -> None:
    codes = torch.tensor([value], dtype=torch.int32)
    half = torch.tensor(2**30, dtype=torch.int32), torch.tensor(31, dtype=torch.int32)
    got = requantize([codes], [0], [half[0]], half[1], None, 0, -128, 127, torch.int8)
    assert int(got) == expected == round(Fraction(value, 2))


def test_requantize_is_the_exact_sum_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, (2, 3, 5), generator=generator, dtype=torch.int32).to(torch.uint8)
    b = torch.randint(-(2**31), 2**31 - 1, (2, 3, 5), generator=generator).to(torch.int32)
    ratios = [torch.rand(3, generator=generator).double() / 4, torch.rand(3, generator=generator).double() * 1e-7]
    multipliers, shift = fixed_point(ratios, [number(255), number(2.0**31)], "here")
    got = requantize([a, b], [131, 0], multipliers, shift, -2, 9, -100, 90, torch.int8)
    for i, c, j in itertools.product(range(2), range(3), range(5)):
        total = (int(a[i, c, j]) - 131) * int(multipliers[0][c]) + int(b[i, c, j]) * int(multipliers[1][c])
        assert int(got[i, c, j]) == min(90, max(-100, round(Fraction(total, 2 ** int(shift[c]))) + 9))


@pytest.mark.parametrize("spread", [[1, 1], [2, 3]])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_the_sum_in_python(groups: int, spread: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (1, 4, 5, 6), generator=generator, dtype=torch.int32).to(torch.uint8)
    weight = torch.randint(-128, 128, (2, 4 // groups, 2, 3), generator=generator, dtype=torch.int32).to(torch.int8)
    weight_zero, bias = torch.tensor([1, -2], dtype=torch.int8), torch.tensor([7, -5000], dtype=torch.int32)
    stride, pads, dilation = [2, 1], [1, 0, 2, 1], [1, 2]
    got = integer_conv(x, 100, weight, weight_zero, bias, stride, pads, spread, dilation, groups)
    fake = torch.ops.fxq.integer_conv(
        x.to("meta"), 100, weight.to("meta"), None, None, stride, pads, spread, dilation, groups
    )
    assert (got.dtype, got.shape) == (torch.int32, fake.shape)
    wide = [(size - 1) * one + 1 for size, one in zip(x.shape[2:], spread, strict=True)]
    for o, i, j in itertools.product(*map(range, got.shape[1:])):
        total = int(bias[o])
        for c, k, m in itertools.product(*map(range, weight.shape[1:])):
            row, column = i * 2 + k - 1, j + 2 * m
            inside = 0 <= row < wide[0] and 0 <= column < wide[1]
            if inside and row % spread[0] == 0 and column % spread[1] == 0:
                channel = c + o * groups // 2 * (4 // groups)
                code = int(x[0, channel, row // spread[0], column // spread[1]]) - 100
                total += code * (int(weight[o, c, k, m]) - int(weight_zero[o]))
        assert int(got[0, o, i, j]) == total


def test_products_along_a_dimension_are_the_sums_in_python() -> None:
    x = torch.randint(-128, 128, (2, 3, 4), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    matrix = torch.randint(-9, 9, (5, 3), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    got = integer_linear(x, 3, matrix, None, None, -2)
    want = torch.einsum("ok,bkj->boj", matrix.long(), x.long() - 3)
    assert got.dtype is torch.int32
    assert torch.equal(got.long(), want)


def test_a_large_sum_is_exact() -> None:
    # float32 holds integers up to 2^24.
    x, weight = torch.full((1, 60000), 255, dtype=torch.uint8), torch.full((1, 60000), 127, dtype=torch.int8)
    assert int(integer_linear(x, 0, weight, None, torch.tensor([1], dtype=torch.int32), -1)) == 255 * 127 * 60000 + 1


def test_products_pools_and_tables() -> None:
    a, b = torch.tensor([[[250, 3, 7]]], dtype=torch.uint8), torch.tensor([[[-128, 127, 0]]], dtype=torch.int8)
    assert integer_mul(a, 5, b, -1).tolist() == [[[245 * -127, -2 * 128, 2]]]
    assert integer_max_pool(b, [2], [1], [1], [1], False).tolist() == [[[-128, 127, 127, 0]]]
    table = torch.arange(256).flip(0).to(torch.uint8)
    assert lookup(b, table, -128).tolist() == [[[255, 0, 127]]]
