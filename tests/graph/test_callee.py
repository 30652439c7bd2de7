"""Functions of torch with a form that takes a number where another takes a tensor: C++ asks what a proxy is."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn, remainder

from fxq.graph.trace import trace

WHERE = torch.where

CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "pow": lambda x: torch.pow(x, 3.0),
    "where": lambda x: WHERE(x > 0, x, 0.0),
    "where_by_name": lambda x: torch.where(x > 0, input=x, other=0.0),
    "over_several_lines": lambda x: torch.where(
        x > 0,
        x,
        0.0,
    ),
    "remainder": lambda x: remainder(x, 2.0),
    "float_power": lambda x: torch.float_power(x, 2.0).float(),
    "xlogy": lambda x: torch.xlogy(x.abs(), 2.0),
    "nested": lambda x: torch.pow(torch.pow(x, 2.0), 2.0),
    "partial": lambda x: functools.partial(torch.pow, exponent=2.0)(x),  # noqa: PLW0108 - a call in a frame of its own is the case
    "unpacked": lambda x: torch.pow(*(x, 2.0)),
}


class Net(nn.Module):
    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = nn.Conv2d(3, 3, 1), call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer(x))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_proxy_is_no_tensor_to_torch_itself(call: Callable[[Tensor], Tensor]) -> None:
    model, x = Net(call).eval(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(trace(model, (x,))(x), model(x))


def test_an_attribute_that_holds_the_function() -> None:
    class Held(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.call(self.layer(x), 2.0)  # type: ignore[call-arg]

    model, x = Held(torch.pow).eval(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(trace(model, (x,))(x), model(x))


def test_a_proxy_is_a_tensor_to_the_model() -> None:
    def asked(x: Tensor) -> Tensor:
        match x:
            case torch.Tensor():
                return torch.pow(x, 2.0) if isinstance(x, Tensor) and issubclass(x.__class__, Tensor) else x
        raise TypeError

    model, x = Net(asked).eval(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(trace(model, (x,))(x), model(x))
