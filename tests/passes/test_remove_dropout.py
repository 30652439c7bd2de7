from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from fxq.graph import graph_text
from fxq.graph.trace import trace
from fxq.testing import assert_rewrites
from fxq_passes import RemoveDropout

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def test_dropout_and_identity_are_bypassed() -> None:
    assert_rewrites(
        [RemoveDropout()],
        model=nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4), nn.Identity(), nn.AlphaDropout(0.5)),
        inputs=X,
        before="""
            input_1 = input
            _0 = Dropout[0](input_1)
            _1 = Linear[1](_0)
            _2 = Identity[2](_1)
            _3 = AlphaDropout[3](_2)
            return _3
        """,
        after="""
            input_1 = input
            _1 = Linear[1](input_1)
            return _1
        """,
    )


def test_dropout_stays_where_the_model_will_be_trained() -> None:
    record = assert_rewrites(
        [RemoveDropout()],
        model=nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.Linear(4, 4)),
        inputs=X,
        qat=True,
        after="""
            input_1 = input
            _0 = Dropout[0](input_1)
            _2 = Linear[2](_0)
            return _2
        """,
    )
    assert [entry.text for entry in record.skipped("_0")] == ["dropout is kept for training"]


class Drops(nn.Module):
    def __init__(self, function: Callable[[Tensor, bool], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.training) + 1


FUNCTIONS: dict[str, Callable[[Tensor, bool], Any]] = {
    "F.dropout": lambda x, training: F.dropout(x, 0.5, training),
    "F.dropout by keyword": lambda x, training: F.dropout(x, p=0.5, training=training),
    "F.alpha_dropout": lambda x, training: F.alpha_dropout(x, 0.5, training),
    "F.feature_alpha_dropout": lambda x, training: F.feature_alpha_dropout(x, 0.5),
    "torch.dropout": lambda x, training: torch.dropout(x, 0.5, training),
    "torch.dropout by keyword": lambda x, training: torch.dropout(input=x, p=0.5, train=training),
    "stochastic_depth": lambda x, training: torchvision.ops.stochastic_depth(x, 0.5, "row", training),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functional_dropout_is_bypassed(function: Callable[[Tensor, bool], Any]) -> None:
    after = "x = input\nadd = add(x, 1)\nreturn add"
    assert_rewrites([RemoveDropout()], model=Drops(function), inputs=X, after=after)


def test_dropout_that_is_asked_for_at_inference_stays() -> None:
    # p is 0, so that the two graphs can be compared.
    for function in (lambda x, _: F.dropout(x, 0.0), lambda x, _: torch.dropout(x, 0.0, True)):
        model = Drops(function)
        record = assert_rewrites([RemoveDropout()], model=model, inputs=X, after=graph_text(trace(model.eval(), (X,))))
        why = "the model asks for dropout at inference (training=True)"
        assert [entry.text for entry in record.skipped("dropout")] == [why]


def test_a_module_called_twice_is_bypassed_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.drop(x) + 1)

    assert_rewrites([RemoveDropout()], model=Twice(), inputs=X, after="x = input\nadd = add(x, 1)\nreturn add")
