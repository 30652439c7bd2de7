"""Learned ranges against the formulas written out by hand."""

import math

import pytest
import torch
from torch import Tensor

from fxq.quant.affine import fake_symmetric_quant, fake_tensor_quant
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
    scaled = (inputs / step).clamp(lo, hi)
    return ((scaled.round() - scaled).detach() + scaled) * step


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("shape", [(), (1, 5, 1)], ids=["per-tensor", "per-channel"])
def test_gradients_are_those_of_the_paper(bounds: tuple[int, int], shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 4, generator=generator)
    amax = torch.rand(shape, generator=generator) + 0.5
    grad = torch.randn(x.shape, generator=generator)
    ours = [x.clone().requires_grad_(), amax.clone().requires_grad_()]
    slow = [x.double().requires_grad_(), amax.double().requires_grad_()]
    values = learned_fake_quant(ours[0], ours[1], bounds)
    expected = lsq_by_autograd(slow[0], slow[1], bounds)
    values.backward(grad)
    expected.backward(grad.double())
    # float32 against float64: sums of 120 products
    torch.testing.assert_close(values.double(), expected, atol=1e-5, rtol=1e-5)
    assert ours[0].grad is not None
    assert slow[0].grad is not None
    assert torch.equal(ours[0].grad.double(), grad.double() * (slow[0].grad != 0))
    torch.testing.assert_close(ours[1].grad, slow[1].grad.float(), atol=1e-5, rtol=1e-4)


def test_values_are_those_of_a_fixed_range() -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(1))
    amax = torch.tensor(1.3, requires_grad=True)
    assert torch.equal(learned_fake_quant(x, amax, (-127, 127)), fake_tensor_quant(x, 1.3))
    with torch.no_grad():
        assert torch.equal(learned_fake_quant(x, amax, (-127, 127)), fake_tensor_quant(x, 1.3))


@pytest.mark.parametrize("amax", [0.0, -0.5])
def test_a_range_that_training_closed_can_open_again(amax: float) -> None:
    x = torch.tensor([1.0, -1.0])
    closed = torch.tensor(amax, requires_grad=True)
    values = learned_fake_quant(x, closed, (-127, 127))
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
