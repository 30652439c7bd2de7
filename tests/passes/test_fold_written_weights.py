"""Weights that the model writes into in place before it uses them, as Swin v2 does with the bias of its keys."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    def __init__(self, how: Callable[["Layer", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.weight, self.bias = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def no_bias_of_keys(layer: Layer, x: Tensor) -> Tensor:
    bias = layer.bias.clone()
    bias[2:4].zero_()
    return F.linear(x, layer.weight, bias)


def assigned_rows(layer: Layer, x: Tensor) -> Tensor:
    weight = layer.weight.clone()
    weight[0] = 0
    weight[:, 1] = layer.bias
    return F.linear(x, weight, layer.bias)


def read_before_too(layer: Layer, x: Tensor) -> Tensor:
    bias = layer.bias.clone()
    keys, twice = bias[2:4], bias * 2
    keys.zero_()
    return F.linear(x, layer.weight, bias).mul(twice)[:, 2:4] + keys + bias[:2]


@pytest.mark.parametrize("how", [no_bias_of_keys, assigned_rows, read_before_too])
def test_what_is_written_into_a_copy_is_stored_with_it(how: Callable[[Layer, Tensor], Tensor]) -> None:
    model = nn.Sequential(Layer(how)).eval()
    prepared = fxq.prepare(model, X, verify=True)
    coverage = fxq.explain(prepared).coverage
    assert (len(coverage.quantized), coverage.total) == (1, 1)


def writes_the_input(layer: Layer, x: Tensor) -> Tensor:
    bias = layer.bias.clone()
    bias[:2].add_(x[0, :2])
    return F.linear(x, layer.weight, bias)


def reads_between(layer: Layer, x: Tensor) -> Tensor:
    bias = layer.bias.clone()
    y = F.linear(x, layer.weight, bias)
    bias[2:4].zero_()
    return y + bias


@pytest.mark.parametrize("how", [writes_the_input, reads_between])
def test_what_has_no_single_value_stays_as_it_is(how: Callable[[Layer, Tensor], Tensor]) -> None:
    model = nn.Sequential(Layer(how)).eval()
    prepared = fxq.prepare(model, X)
    assert not fxq.explain(prepared).coverage.quantized
    torch.testing.assert_close(prepared(X), model(X))
