"""Lowerings of modules are registered; one for a module of one's own comes from outside of the package."""

import importlib.metadata
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

import fxq
from fxq.graph import graph_text
from fxq.nn import OnlyInputQuantized, QuantEmbedding, QuantLSTM
from fxq.registry import load_plugins, tables

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class Square(nn.Module):
    """A float module of the plugin's."""

    is_odd = False

    def forward(self, input: Tensor) -> Tensor:
        return input * input


class QuantSquare(OnlyInputQuantized, Square):
    """Quantizes what it squares."""


class QuantNegatedSquare(QuantSquare):
    """A subclass."""


class LowerSquare:
    """Becomes a product of two dequantized tensors."""

    def why_not(self, node: Node, module: Any) -> str | None:
        return "it squares no numbers" if module.is_odd else None

    def lower(self, lowering: Any, node: Node, layer: QuantSquare) -> None:
        source = node.all_input_nodes[0]
        assert layer.input_quantizer is not None
        value = lowering.activation(node, source, f"{node.target}.input", layer.input_quantizer)
        lowering.rw.call_instead(node, torch.mul, (value, value), {}, "written as a product")


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Forget the lowerings of each test."""
    load_plugins()
    before = tables.snapshot()
    yield
    tables.restore(before)


def converted(*layers: nn.Module) -> Any:
    model = nn.Sequential(*layers).eval()
    prepared = fxq.prepare(model, X, verify=True)
    fxq.calibrate(prepared, [X], progress=False)
    return fxq.convert(prepared)


def test_a_quantized_module_of_a_plugin_is_lowered_as_the_plugin_says() -> None:
    fxq.lowers(QuantSquare)(LowerSquare)
    lowered = converted(QuantSquare())
    assert "mul" in graph_text(lowered)
    assert "QuantSquare" not in graph_text(lowered)


def test_a_subclass_is_lowered_like_its_base_until_it_has_a_lowering_of_its_own() -> None:
    fxq.lowers(QuantSquare)(LowerSquare)
    assert type(fxq.find_lowering(QuantNegatedSquare())) is LowerSquare
    own = type("Own", (LowerSquare,), {})
    fxq.lowers(QuantNegatedSquare)(own)
    assert type(fxq.find_lowering(QuantNegatedSquare())) is own


def test_a_call_that_has_no_lowered_form_is_refused_with_the_reason() -> None:
    fxq.lowers(QuantSquare)(LowerSquare)
    odd = QuantSquare()
    odd.is_odd = True
    with pytest.raises(fxq.GraphError, match=r"^'1' \(QuantSquare\): it squares no numbers"):
        converted(QuantSquare(), odd)


def test_a_float_module_has_the_lowering_of_what_takes_its_place() -> None:
    found = fxq.find_lowering(nn.LSTM(2, 2))
    assert found is not None
    assert found is fxq.find_lowering(QuantLSTM(2, 2))
    assert fxq.find_lowering(nn.ReLU()) is None


def test_a_module_is_looked_up_without_reading_the_installed_packages_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fxq.registered_passes()
    read: list[str] = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: read.append(group) or ())
    assert fxq.find_lowering(nn.LSTM(2, 2)) is not None
    assert read == []


def test_a_module_that_is_taken_is_refused_and_the_same_class_again_is_not() -> None:
    fxq.lowers(QuantSquare)(LowerSquare)
    fxq.lowers(QuantSquare)(type("LowerSquare", (LowerSquare,), {"__module__": __name__}))  # a notebook cell, again
    with pytest.raises(
        fxq.PluginError, match=r"QuantEmbedding is lowered by .*LowerEmbedding, and .*LowerSquare wants"
    ):
        fxq.lowers(QuantEmbedding)(LowerSquare)


@pytest.mark.parametrize("missing", ["why_not", "lower"])
def test_a_lowering_needs_both_methods(missing: str) -> None:
    methods = {name: getattr(LowerSquare, name) for name in ("why_not", "lower") if name != missing}
    with pytest.raises(fxq.PluginError, match=f"has no method '{missing}'"):
        fxq.lowers(QuantSquare)(type("Half", (), methods))


@pytest.mark.parametrize("wrong", [(), ("QuantLSTM",), (int,)], ids=repr)
def test_a_lowering_is_for_classes_of_modules(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(fxq.PluginError, match="a lowering is for classes of modules"):
        fxq.lowers(*wrong)
