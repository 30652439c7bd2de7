"""Names of modules and recipes that a terminal, a markup or Python would obey: shown as they are, or refused."""

import io
from pathlib import Path

import onnx
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import fxq

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
MARKUP = ["[red]", "[/]", "[/red]", "[bold]x", "a]b", ":smile:", "a b", "it's", "1", "{x}", "%s", "#", "é", "😀"]
OBEYED = {"\x1b[31mred": r"\x1b[31mred", "\x07": r"\x07", "a\tb": r"a\tb", "\u202ertl": r"\u202ertl", "\x9b": r"\x9b"}
CODE = ['x"', "x\ny", "x\ry", "x\\y", "x\0", "x\ud800", "class", "lambda", "self", '"); import os; ("']


class Holds(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(4, 4))
        self.child, self.last = name, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._modules[self.child](x).relu())


def shown(explanation: object, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(explanation)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "text"), [*((name, name) for name in MARKUP), *OBEYED.items()], ids=lambda text: ascii(text)[1:-1]
)
def test_names_are_shown_as_they_are(name: str, text: str) -> None:
    recipe = fxq.recipe("tensorrt").replace(name=name).with_rules(("last", None))
    assert fxq.Recipe.from_toml(recipe.to_toml()) == recipe
    prepared = fxq.prepare(Holds(name).eval(), X, recipe)
    explanation = fxq.explain(prepared)
    for found in (str(explanation), shown(explanation, 80), shown(explanation, 160)):
        assert f"{text} for tensorrt: 1 input, 1 weight" in found
        assert found.count(text) >= 2  # of the recipe and of the module
        assert all(letter.isprintable() or letter == "\n" for letter in found)
    with pytest.raises(fxq.RecipeError) as caught:
        fxq.prepare(Holds(name).eval(), X, recipe.with_rules((f"{name}no such", None)))
    assert all(letter.isprintable() for letter in str(caught.value))


def test_names_come_through_a_file(tmp_path: Path) -> None:
    name = "[red]\x1b 'it' é"
    converted = fxq.quantize(Holds(name).eval(), [X], fxq.recipe("tensorrt").replace(name=name), progress=False)
    report = fxq.export_onnx(converted, tmp_path / f"{name}.onnx")
    assert report.path.exists()
    model = onnx.load(report.path)
    assert f"{name}.weight" in {tensor.name for tensor in model.graph.initializer}
    stored = {entry.key: entry.value for entry in model.metadata_props}["fxq.recipe"]
    assert fxq.Recipe.from_toml(stored).name == name


class Returns(nn.Module):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.layer, self.key = nn.Linear(4, 4), key

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {self.key: self.layer(x)}


def test_outputs_keep_their_names_where_a_file_can_hold_them(tmp_path: Path) -> None:
    report = fxq.export_onnx(fxq.quantize(Returns('[red]\x1b"').eval(), [X], progress=False), tmp_path / "a.onnx")
    assert [output.name for output in onnx.load(report.path).graph.output] == ['[red]\x1b"']
    converted = fxq.quantize(Returns("a\ud800").eval(), [X], progress=False)
    with pytest.raises(fxq.ExportError, match=r"the model returns 'a\\ud800', .*: return it by another key"):
        fxq.export_onnx(converted, tmp_path / "b.onnx")


@pytest.mark.parametrize("name", CODE, ids=lambda text: ascii(text)[1:-1])
def test_a_name_that_would_be_other_code_is_refused(name: str) -> None:
    with pytest.raises(fxq.TraceError, match=r"^cannot trace .*; rename it in the model$"):
        fxq.prepare(Holds(name).eval(), X)
    recipe = fxq.recipe("tensorrt").replace(leaf_modules=("Holds",))
    assert fxq.prepare(nn.Sequential(Holds(name)).eval(), X, recipe)(X).shape == (2, 2)  # not written where not entered


def test_a_recipe_has_a_name_that_a_file_can_hold() -> None:
    with pytest.raises(fxq.RecipeError, match=r"UTF-8 can write, got 'a\\ud800'"):
        fxq.recipe("tensorrt").replace(name="a\ud800")


def test_errors_show_what_a_terminal_would_obey() -> None:
    assert str(fxq.FxqError("a\x1b[31mb\r\n\tc\ud800")) == "a\\x1b[31mb\\r\n\tc\\ud800"
    assert str(fxq.RuntimeUnavailableError("\x07")) == r"\x07"
    assert str(fxq.FxqError()) == ""
