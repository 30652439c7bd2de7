"""Example inputs in each form that a call of a model has."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.batches import as_positional

X, Y = torch.randn(2, 4), torch.randn(2, 4)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: float = 2.0, bias: Tensor | None = None) -> Tensor:
        found = self.fc(x) * scale
        return found if bias is None else found + bias


class ByKeyword(nn.Module):
    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        return x * mask


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (X, (X,)),
        ((X, 3.0), (X, 3.0)),
        ([X], (X,)),
        ({"x": X}, (X,)),
        ({"bias": Y, "x": X}, (X, 2.0, Y)),
        (((X,), {"bias": Y}), (X, 2.0, Y)),
        (((X,), {}), (X,)),
        (None, None),
    ],
    ids=["tensor", "tuple", "list", "dict", "dict in another order", "args and kwargs", "args alone", "none"],
)
def test_all_forms_are_positional_inputs(given: Any, expected: Any) -> None:
    assert as_positional(Two(), given) == expected


def test_a_model_prepared_with_keywords_takes_them() -> None:
    model = Two().eval()
    prepared = fxq.prepare(model, {"x": X, "bias": Y})
    fxq.calibrate(prepared, [{"x": X, "bias": Y}], progress=False)
    converted = fxq.convert(prepared)
    torch.testing.assert_close(converted(x=X, bias=Y), model(X, bias=Y), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (Two(), {"x": X, "z": X}, "example_inputs do not fit forward.*unexpected keyword argument 'z'"),
        (Two(), {"bias": Y}, "example_inputs do not fit forward.*missing a required argument: 'x'"),
        (Two(), 3, "a dict of keyword inputs or .args, kwargs., got int"),
        (ByKeyword(), {"x": X, "y": Y}, "example_inputs do not fit forward.*missing a required.*'mask'"),
    ],
)
def test_what_does_not_fit_is_an_error(model: nn.Module, given: Any, message: str) -> None:
    with pytest.raises(fxq.InputError, match=message):
        fxq.prepare(model.eval(), given)
