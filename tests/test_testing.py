from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.graph import kind
from fxq.testing import assert_rewrites

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
BEFORE = "input_1 = input\n_0 = ReLU[0](input_1)\nreturn _0"
AFTER = "input_1 = input\nreturn input_1"


@dataclass(frozen=True)
class DropRelu(fxq.Pass):
    """Bypass ReLUs, which ``honest`` says changes numbers."""

    stage = fxq.Stage.NORMALIZED
    name = "drop_relu"
    tolerance = fxq.ANY

    def run(self, rw: fxq.Rewriter) -> None:
        for node in rw.nodes(lambda node: kind(node) == "relu"):
            rw.bypass(node, "because")


class Liar(DropRelu):
    name = "liar"
    tolerance = fxq.ROUNDING


class Restless(fxq.Pass):
    """Change something each time."""

    stage = fxq.Stage.NORMALIZED
    name = "restless"

    def run(self, rw: fxq.Rewriter) -> None:
        for node in rw.nodes(lambda node: node.op == "call_module"):
            rw.edit(node, "again")


def model() -> nn.Module:
    return nn.Sequential(nn.ReLU())


def test_the_record_is_returned() -> None:
    record = assert_rewrites([DropRelu()], model=model(), inputs=X, before=BEFORE, after=AFTER)
    assert [str(entry) for entry in record.entries] == ["drop_relu: 0: because"]


def test_indentation_and_blank_lines_around_the_text_do_not_count() -> None:
    assert_rewrites(
        [DropRelu()],
        model=model(),
        inputs=(X,),
        after="""

            input_1 = input
            return input_1

        """,
    )


def test_another_text_is_an_error_that_shows_the_difference() -> None:
    with pytest.raises(AssertionError, match=r"the graph after the passes differs:\n(.*\n)*-_0 = ReLU\[0\]\(input_1\)"):
        assert_rewrites([DropRelu()], model=model(), inputs=X, after=BEFORE)
    with pytest.raises(AssertionError, match="the graph before the passes differs"):
        assert_rewrites([DropRelu()], model=model(), inputs=X, before=AFTER, after=AFTER)


def test_a_promise_that_is_not_kept_is_an_error() -> None:
    with pytest.raises(fxq.PassError, match=r"pass 'liar' .* changed 'output'"):
        assert_rewrites([Liar()], model=model(), inputs=X, after=AFTER)


def test_a_pass_that_changes_something_the_second_time_is_an_error() -> None:
    with pytest.raises(AssertionError, match="a second run changed the graph again: restless: 0: again"):
        assert_rewrites([Restless()], model=model(), inputs=X, after=BEFORE)


def test_the_model_and_the_inputs_are_not_modified() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu_() + 1

    original, x = nn.Sequential(nn.Linear(4, 4), InPlace()).train(), X.clone()
    state = {name: value.clone() for name, value in original.state_dict().items()}
    assert_rewrites(
        [DropRelu()],
        model=nn.Sequential(original),
        inputs=x,
        after="""
            input_1 = input
            _0_0 = Linear[0.0](input_1)
            relu_ = .relu_(_0_0)
            add = add(relu_, 1)
            return add
        """,
    )
    assert original.training
    assert torch.equal(x, X)
    assert all(torch.equal(state[name], value) for name, value in original.state_dict().items())
