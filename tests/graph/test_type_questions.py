"""Python may ask for the type of a value: a proxy answers for what it stands for, or tracing refuses."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import TraceError
from fxq.graph.trace import trace

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Asks(nn.Module):
    """Doubles its input where ``question`` is answered as it is on tensors."""

    def __init__(self, question: Any) -> None:
        super().__init__()
        self.question = question
        self.weight = nn.Parameter(torch.ones(8))
        self.register_buffer("ones", torch.ones(8))
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.question(self, x) else x * 3


def asserts(self: Any, x: Any) -> bool:
    assert torch.is_tensor(x)
    return True


@functools.singledispatch
def dispatched(x: Any) -> bool:
    return False


@dispatched.register
def _(x: Tensor) -> bool:
    return True


ABOUT_VALUES = {
    "isinstance": lambda self, x: isinstance(x, Tensor),
    "is_tensor": asserts,
    "type is": lambda self, x: type(x) is Tensor,
    "type in": lambda self, x: type(x + 1) in (Tensor, float),
    "class": lambda self, x: x.__class__ is Tensor,
    "tuple of a module": lambda self, x: isinstance(self.lstm(x[None]), (tuple, list)),
    "no number": lambda self, x: not isinstance(x, (int, float, bool, str, dict, list, tuple)),
    "callable": lambda self, x: not callable(x),
    "hasattr": lambda self, x: not hasattr(x, "tensors"),
    "singledispatch": lambda self, x: dispatched(x),
    "shape": lambda self, x: isinstance(x.shape, torch.Size) and type(x.size()) is torch.Size,
    "size": lambda self, x: isinstance(x.shape[0], int) and type(x.shape[0]) is int,
    "is_floating_point": lambda self, x: torch.is_floating_point(x) is True,
    "is_complex": lambda self, x: torch.is_complex(x) is False and x.is_complex() is False,
    "is_cuda": lambda self, x: x.is_cuda is False,
    "device": lambda self, x: x.device.type == "cpu",
    "dtype": lambda self, x: x.dtype is torch.float32,
    "dtype the other way around": lambda self, x: torch.float32 is x.dtype and torch.float64 is not x.dtype,
    "requires_grad": lambda self, x: not (x * self.weight).requires_grad,
}
KNOWN = {
    "no parameter": lambda self, x: not isinstance(x * 1, nn.Parameter),
    "parameter": lambda self, x: isinstance(self.weight, nn.Parameter),
    "None of a module": lambda self, x: self.attention(x[None], x[None], x[None], need_weights=False)[1] is None,
    "buffer": lambda self, x: not isinstance(self.ones, nn.Parameter) and type(self.ones) is Tensor,
}
DECIDED_BY_IS = {
    "grad mode": lambda self, x: not torch.is_grad_enabled(),
}
ALL = {**ABOUT_VALUES, **KNOWN, **DECIDED_BY_IS}


@pytest.mark.parametrize("question", ALL.values(), ids=ALL.keys())
def test_a_question_is_answered_as_on_tensors(question: Any) -> None:
    model = Asks(question).eval()
    with torch.no_grad():
        assert torch.equal(model(X), X * 2)
        assert torch.equal(trace(model, (X,))(X), X * 2)


@pytest.mark.parametrize("question", ABOUT_VALUES.values(), ids=ABOUT_VALUES.keys())
def test_what_is_not_known_without_example_inputs_is_refused(question: Any) -> None:
    with pytest.raises(TraceError, match=r"not known.*pass example_inputs"):
        trace(Asks(question).eval(), None)


@pytest.mark.parametrize("question", KNOWN.values(), ids=KNOWN.keys())
def test_what_is_a_parameter_is_known_without_example_inputs(question: Any) -> None:
    assert torch.equal(trace(Asks(question).eval(), None)(X), X * 2)


def test_torch_may_ask_what_the_model_does_not() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.arange(x.shape[1], dtype=x.dtype) * torch.ones(x.shape[0], 1)

    assert torch.equal(trace(Counts(), None)(X), Counts()(X))


def test_files_of_the_model_keep_their_own_words() -> None:
    def fail(self: Any, x: Any) -> bool:
        raise KeyError

    class Meta(type):
        pass

    before = dict(globals())
    for question in (lambda self, x: isinstance(Meta, type) and issubclass(Meta, type) and type("A", (), {}), fail):
        try:
            trace(Asks(question).eval(), (X,))
        except TypeError:
            assert question is fail
    assert {name: globals().get(name) for name in before} == before
    assert not {"type", "callable"} & globals().keys()
