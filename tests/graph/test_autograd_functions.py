"""What takes a proxy for a tensor in C++: it is followed, or refused, and does not end the process."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.graph.trace import trace

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rank = x.dim() if ctx.needs_input_grad[0] else 0
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Clamp(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, high: float) -> Tensor:
        return x.clamp(max=high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class Between(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Clamp.apply(Swish.apply(x), 0.5) if isinstance(x, Tensor) else x


class Centered(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda rows: rows - rows.mean(0))(x)


def around(inner: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), inner, nn.Linear(8, 4)).eval()


def test_a_function_with_its_own_gradient_is_followed() -> None:
    model, before = around(Between()), torch.autograd.Function.__dict__["apply"]
    gm = trace(model, (X,))
    assert torch.equal(gm(X), model(X))
    assert {str(node.target) for node in gm.graph.nodes if node.op == "call_method"} == {"clamp"}
    assert torch.autograd.Function.__dict__["apply"] is before


def test_in_training_its_gradient_stays_in_a_module_of_its_own() -> None:
    with pytest.raises(fxq.TraceError, match=r"Swish\.apply has a gradient of its own.*leaf_modules=\(\"1\",\)"):
        fxq.prepare(around(Between()), X, qat=True, frontend="symbolic")
    prepared = fxq.prepare(around(Between()), X, fxq.Recipe(leaf_modules=("1",)), qat=True)
    x = X.clone().requires_grad_()
    prepared(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("frontend", ["symbolic", "export"])
def test_a_transform_of_functions_is_refused_and_kept_whole(frontend: Any) -> None:
    with pytest.raises(fxq.TraceError, match=r"(?s)test_autograd_functions\.py.* `return torch\.vmap.*leaf_modules"):
        fxq.prepare(around(Centered()), X, frontend=frontend)
    with pytest.warns(UserWarning, match=r"kept whole in float.*'1'"):
        prepared = fxq.prepare(around(Centered()), X, untraceable="float")
    assert fxq.explain(prepared).coverage.quantized == ("0", "2")
