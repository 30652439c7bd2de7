"""TensorQuantizer: straight-through gradients and learned ranges."""

import pytest
import torch
from torch import Tensor

from fxq.nn import TensorQuantizer
from fxq.quant.descriptor import QuantDescriptor
from fxq.quant.learned import learned_fake_quant


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_gradient_of_the_input_is_straight_through() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(amax=1.0))
    x = torch.tensor([-1.5, -1.0, 0.2, 1.0, 1.5], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_dynamic_range_takes_no_gradient() -> None:
    x = data(10).requires_grad_()
    TensorQuantizer()(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(10))


@pytest.mark.parametrize("axis", [None, 1])
def test_learned_range_is_a_parameter_from_calibration_on(axis: int | None) -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=axis, learn_amax=True, num_bits=4))
    assert list(quantizer.parameters()) == []
    x = data(4, 3, 5)
    quantizer.enable_calib()
    quantizer(x)
    quantizer.load_calib_amax()
    (amax,) = quantizer.parameters()
    by_hand = amax.detach().clone().requires_grad_()
    assert torch.equal(quantizer(x), learned_fake_quant(x, by_hand, (-8, 7)))
    quantizer(x).square().sum().backward()
    learned_fake_quant(x, by_hand, (-8, 7)).square().sum().backward()
    assert torch.equal(amax.grad, by_hand.grad)


def test_learned_parameter_keeps_its_identity_when_assigned() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(learn_amax=True, amax=1.0))
    (before,) = quantizer.parameters()
    quantizer.amax = 2.0
    (after,) = quantizer.parameters()
    assert after is before
    assert after.item() == 2.0


def test_learned_range_with_clip_gets_the_gradient_of_what_is_clipped() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(learn_amax=True, amax=1.0), if_clip=True)
    x = torch.tensor([-3.0, 0.4, 2.0, 5.0], requires_grad=True)
    quantizer(x).backward(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    assert next(quantizer.parameters()).grad.item() == 1100 - 1
    assert x.grad.tolist() == [0, 10, 0, 0]
