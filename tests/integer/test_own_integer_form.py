"""Integer forms of operations of one's own: registered, found, and refused where they cannot be."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from integer_models import Between, converted, step_of
from torch import Tensor, nn
from torch.fx import Node

import fxq
from fxq.registry import find_integer_form, load_plugins, tables


class Mirrored(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1)


class IntegerMirror:
    """Mirrors codes."""

    keeps_grid = True

    def why_not(self, node: Node) -> str | None:
        return None

    def codes(self, writer: fxq.integer.Writer, node: Node, grid: fxq.integer.Grid) -> Node:
        codes = writer.codes(node.all_input_nodes[0], grid)
        return writer.insert(torch.flip, (codes, [-1]), node, grid.dtype)


@pytest.fixture(autouse=True)
def _forgotten_afterwards() -> Iterator[None]:
    load_plugins()
    before = tables.snapshot()
    fxq.register_kind("test_mirrored", Mirrored)
    yield
    tables.restore(before)


def converted_mirror() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    return converted(Between(Mirrored(), 4), x), x


def test_an_operation_gets_a_form_from_outside() -> None:
    qdq, x = converted_mirror()
    with pytest.raises(fxq.GraphError, match="'test_mirrored' has no integer form"):
        fxq.to_integer(qdq)
    fxq.integer_form("test_mirrored")(IntegerMirror)
    integer = fxq.to_integer(qdq)
    assert float((integer(x) - qdq(x)).abs().max()) < 1.5 * step_of(qdq)
    assert any(node.target is torch.flip for node in integer.graph.nodes)


class FailingMirror(IntegerMirror):
    def codes(self, writer: fxq.integer.Writer, node: Node, grid: fxq.integer.Grid) -> Node:
        raise KeyError("flip")


class ForgetfulMirror(IntegerMirror):
    def codes(self, writer: fxq.integer.Writer, node: Node, grid: fxq.integer.Grid) -> Node:
        super().codes(writer, node, grid)  # and no return


class WrongMirror(IntegerMirror):
    """Forgets to mirror."""

    def codes(self, writer: fxq.integer.Writer, node: Node, grid: fxq.integer.Grid) -> Node:
        return writer.codes(node.all_input_nodes[0], grid)


@pytest.mark.parametrize(
    ("form", "what"),
    [(FailingMirror, "failed: KeyError: 'flip'"), (ForgetfulMirror, "returned None, and not the node")],
)
def test_a_form_that_fails_is_named_with_the_node(form: type[IntegerMirror], what: str) -> None:
    qdq, _ = converted_mirror()
    fxq.integer_form("test_mirrored")(form)
    with pytest.raises(fxq.PassError, match=rf"^to_integer: .*{form.__name__}\.codes of node '.*{what}"):
        fxq.to_integer(qdq)


@pytest.mark.parametrize("is_given", [True, False], ids=["example inputs", "calibration samples"])
def test_a_form_that_computes_something_else_is_found_out(is_given: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    prepared = fxq.prepare(Between(Mirrored(), 4).eval(), x if is_given else None, "onnxruntime")
    fxq.calibrate(prepared, [x], progress=False)
    fxq.integer_form("test_mirrored")(WrongMirror)
    with pytest.raises(fxq.GraphError, match="the integers compute another 'output' than the converted model"):
        fxq.to_integer(fxq.convert(prepared))


def test_the_same_class_defined_again_takes_its_place() -> None:
    fxq.integer_form("test_mirrored")(IntegerMirror)
    fxq.integer_form("test_mirrored")(IntegerMirror)
    assert isinstance(find_integer_form("test_mirrored"), IntegerMirror)


def test_a_word_that_is_no_kind_is_refused() -> None:
    with pytest.raises(fxq.PluginError, match="'mirored' is none"):
        fxq.integer_form("mirored")
    with pytest.raises(fxq.PluginError, match="None is none"):
        fxq.integer_form()


def test_a_kind_that_is_taken_is_refused() -> None:
    with pytest.raises(
        fxq.PluginError, match=r"'relu' has the integer form .*IntegerClamp.*, and .*IntegerMirror wants it"
    ):
        fxq.integer_form("relu")(IntegerMirror)


def test_half_a_form_is_refused() -> None:
    class Half:
        def why_not(self, node: Node) -> str | None:
            return None

    with pytest.raises(fxq.PluginError, match="has no method 'codes'"):
        fxq.integer_form("test_mirrored")(Half)  # type: ignore[type-var]
