"""Learned ranges against the formulas written out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fxq.quant.affine import fake_symmetric_quant
from fxq.quant.learned import learned_clip, learned_fake_quant

BOUNDS = [
    pytest.param((-128, 127), id="int8"),
    pytest.param((-7, 7), id="int4-narrow"),
    pytest.param((0, 15), id="uint4"),
]


def lsq_by_autograd(inputs: Tensor, amax: Tensor, bounds: tuple[int, int]) -> Tensor:
    """LSQ as the paper's appendix writes it, with detach() for straight-through, in float64."""
    lo, hi = bounds
    elements = inputs.numel() / amax.numel()
    factor = 1 / math.sqrt(elements * hi)
    step = amax / hi
    step = (step - step * factor).detach() + step * factor
    scaled = inputs / step
    # A value on a bound is clipped, as the paper has it; the gradient of torch's clamp there is that of its version.
    scaled = torch.where(scaled >= hi, float(hi), torch.where(scaled <= lo, float(lo), scaled))
    return ((scaled.round() - scaled).detach() + scaled) * step


def pact_by_autograd(inputs: Tensor, amax: Tensor, bounds: tuple[int, int]) -> Tensor:
    """PACT for any bounds: clipped to what the codes reach, then rounded straight-through, in float64."""
    lo, hi = bounds
    lowest = amax * (lo / hi)
    clipped = torch.where(inputs >= amax, amax, torch.where(inputs <= lowest, lowest, inputs))
    step = (amax / hi).detach()
    return ((clipped / step).round() * step - clipped).detach() + clipped


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("shape", [(), (1, 5, 1)], ids=["per-tensor", "per-channel"])
@pytest.mark.parametrize(
    ("rule", "by_autograd"), [("lsq", lsq_by_autograd), ("pact", pact_by_autograd)], ids=["lsq", "pact"]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
def test_gradients_are_those_of_the_paper(
    bounds: tuple[int, int], shape: tuple[int, ...], rule: str, by_autograd: Any, layout: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, 4, generator=generator).to(memory_format=layout)
    x[0, 0] = 0.0  # which unsigned codes hold, as what is rectified
    shape = (*shape, 1) if shape else ()
    amax = torch.rand(shape, generator=generator) + 0.5
    grad = torch.randn(x.shape, generator=generator)
    ours = [x.clone().requires_grad_(), amax.clone().requires_grad_()]
    slow = [x.double().requires_grad_(), amax.double().requires_grad_()]
    values = learned_fake_quant(ours[0], ours[1], bounds, rule)
    expected = by_autograd(slow[0], slow[1], bounds)
    values.backward(grad)
    expected.backward(grad.double())
    # float32 against float64: sums of 120 products
    torch.testing.assert_close(values.double(), expected, atol=1e-5, rtol=1e-5)
    assert ours[0].grad is not None
    assert slow[0].grad is not None
    assert torch.equal(ours[0].grad.double(), grad.double() * (slow[0].grad != 0))
    torch.testing.assert_close(ours[1].grad, slow[1].grad.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", ["lsq", "pact"])
@pytest.mark.parametrize("bounds", [*BOUNDS, pytest.param((-32768, 32767), id="int16")])
def test_values_are_those_of_a_fixed_range(rule: str, bounds: tuple[int, int]) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    x[:3] = torch.tensor([1.3, -1.3, torch.inf])
    amax = torch.tensor(1.3, requires_grad=True)
    expected = fake_symmetric_quant(x, torch.tensor(1.3), bounds)
    assert torch.equal(learned_fake_quant(x, amax, bounds, rule), expected)
    with torch.no_grad():
        assert torch.equal(learned_fake_quant(x, amax, bounds, rule), expected)


@pytest.mark.parametrize("rule", ["lsq", "pact"])
def test_a_value_on_the_bound_counts_as_clipped(rule: str) -> None:
    """The largest one that calibration saw; amax * (127 / amax) is less than 127 for some, and more for others."""
    amax = torch.rand(1000, 1, generator=torch.Generator().manual_seed(4)) + 0.5
    assert {126, 127} <= set((amax * (127 / amax)).floor().flatten().tolist())
    x, learned = amax.clone().requires_grad_(), amax.clone().requires_grad_()
    learned_fake_quant(x, learned, (-127, 127), rule).sum().backward()
    assert x.grad is not None
    assert learned.grad is not None
    assert not bool(x.grad.any())
    expected = torch.full_like(amax, 1.0 if rule == "pact" else 1 / math.sqrt(127))
    torch.testing.assert_close(learned.grad, expected, atol=0, rtol=1e-6)


@pytest.mark.parametrize("rule", ["lsq", "pact"])
def test_an_infinite_input_is_clipped_and_makes_no_nan(rule: str) -> None:
    x = torch.tensor([torch.inf, -torch.inf, 0.5], requires_grad=True)
    amax = torch.tensor(1.0, requires_grad=True)
    learned_fake_quant(x, amax, (-127, 127), rule).backward(torch.tensor([1.0, -2.0, 4.0]))
    assert x.grad is not None
    assert amax.grad is not None
    assert x.grad.tolist() == [0, 0, 4]
    assert 1.7 < amax.grad * (1.0 if rule == "pact" else math.sqrt(3 * 127)) < 3.1  # 1 + 2, and a rounding error of 4


def test_a_backward_pass_may_be_repeated() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(5))
    amax = torch.tensor(0.8, requires_grad=True)
    values = learned_fake_quant(x, amax, (-8, 7))
    first, second = (torch.autograd.grad(values.square().sum(), amax, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("rule", ["lsq", "pact"])
@pytest.mark.parametrize("amax", [0.0, -0.5])
def test_a_range_that_training_closed_can_open_again(amax: float, rule: str) -> None:
    x = torch.tensor([1.0, -1.0])
    closed = torch.tensor(amax, requires_grad=True)
    values = learned_fake_quant(x, closed, (-127, 127), rule)
    assert torch.equal(values, torch.zeros(2))
    ((values - x) ** 2).sum().backward()
    assert closed.grad is not None
    assert closed.grad < 0  # a step against it widens the range


def test_training_finds_the_range_of_least_error() -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(2))
    amax = torch.tensor(6.0, requires_grad=True)
    optimizer = torch.optim.Adam([amax], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        ((learned_fake_quant(x, amax, (-7, 7)) - x) ** 2).mean().backward()
        optimizer.step()
    error = {
        value: ((fake_symmetric_quant(x, torch.tensor(value), (-7, 7)) - x) ** 2).mean()
        for value in (1.5, 2, 2.5, 3, 4)
    }
    best = min(error, key=lambda value: error[value])
    assert abs(amax.item() - best) < 0.5  # the grid is 0.5 wide there


def test_half_precision_input_gets_a_float32_range_gradient() -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(3)).half().requires_grad_()
    amax = torch.tensor(0.7, requires_grad=True)
    learned_fake_quant(x, amax, (-128, 127)).sum().backward()
    assert x.grad is not None
    assert amax.grad is not None
    assert (x.grad.dtype, amax.grad.dtype) == (torch.float16, torch.float32)


def test_clip_bounds_get_the_gradient_of_what_they_clip() -> None:
    x = torch.tensor([-3.0, -1.0, 0.5, 2.0, 2.5], requires_grad=True)
    low, high = torch.tensor(-1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    values = learned_clip(x, low, high)
    assert values.tolist() == [-1, -1, 0.5, 2, 2]
    values.backward(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]))
    grads = [tensor.grad.tolist() for tensor in (x, low, high)]
    assert grads == [[0, 0, 4, 0, 0], 3, 24]


def test_clip_per_channel_sums_each_channel() -> None:
    x = torch.tensor([[2.0, 3.0], [0.5, 9.0]])
    high = torch.ones(2, 1, requires_grad=True)
    learned_clip(x, -high, high).sum().backward()
    assert high.grad is not None
    assert high.grad.tolist() == [[2], [1]]
