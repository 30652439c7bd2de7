"""A call that differs from what was burned into the graph is an error, and no other graph's answer."""

import copy
import enum
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.graph.trace import trace

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Optional(nn.Module):
    """Has a tensor, a flag, a text and a number that are mostly left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)

    def forward(
        self, image: Tensor, meta: Tensor | None = None, twice: bool = False, mode: str = "sum", scale: float = 1.0
    ) -> Tensor:
        y = self.first(image)
        if meta is not None:
            y = y + meta
        if twice:
            y = y * 2
        if mode == "mean":
            y = y.mean(1, keepdim=True)
        if scale > 2:
            y = y * scale
        return self.second(y)


def converted() -> GraphModule:
    torch.manual_seed(0)
    return fxq.quantize(Optional().eval(), [X], "onnxruntime", X, progress=False)


def pickled(gm: GraphModule) -> nn.Module:
    return pickle.loads(pickle.dumps(gm))  # type: ignore[no-any-return]


FORMS: dict[str, Callable[[GraphModule], nn.Module]] = {
    "prepared": lambda gm: fxq.prepare(Optional().eval(), X),
    "converted": lambda gm: gm,
    "copied": copy.deepcopy,
    "pickled": pickled,
    "pickled twice": lambda gm: pickled(pickled(gm)),  # type: ignore[arg-type]
}
OTHERS = {
    "tensor": ((X,), {}, r"with meta = None, and is called with meta = a tensor of shape \(2, 8\)"),
    "by name": ((), {"meta": X}, r"with meta = None, and is called with meta = a tensor"),
    "flag": ((None, True), {}, r"with twice = False, and is called with twice = True"),
    "text": ((), {"mode": "mean"}, r"with mode = 'sum', and is called with mode = 'mean'"),
    "number": ((), {"scale": 3.0}, r"with scale = 1.0, and is called with scale = 3.0.*prepare the model again"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_another_argument_than_the_one_burned_in_is_an_error(form: Callable[[GraphModule], nn.Module]) -> None:
    model = form(converted())
    for args, kwargs, text in OTHERS.values():
        with pytest.raises(fxq.InputError, match=text):
            nn.Module.__call__(model, X, *args, **kwargs)
    expected = model(X)
    assert torch.equal(model(X, None, False, mode="sum", scale=1), expected)
    assert torch.equal(model(image=X), expected)


def test_a_compiled_model_refuses_it_too() -> None:
    model = torch.compile(converted(), backend="eager", fullgraph=False)
    expected = converted()(X)
    assert torch.equal(model(X), expected)
    with pytest.raises(Exception, match=r"with meta = None, and is called with meta = a tensor"):
        model(X, X)


def test_exporters_refuse_it_and_files_are_free_of_it(tmp_path: Path) -> None:
    gm = converted()
    with pytest.raises(Exception, match=r"with meta = None, and is called with meta = a tensor"):
        torch.export.export(gm, (X, X))
    with pytest.raises(fxq.InputError, match=r"with meta = None"):
        fxq.export_onnx(gm, tmp_path / "model.onnx", (X, X))
    fxq.export_onnx(gm, tmp_path / "model.onnx")
    file = onnx.load(tmp_path / "model.onnx")
    assert [value.name for value in file.graph.input] == ["image"]
    assert {node.op_type for node in file.graph.node} == {"QuantizeLinear", "DequantizeLinear", "Gemm"}


def test_what_was_given_is_an_input_or_the_new_default() -> None:
    model = Optional().eval()
    prepared = fxq.prepare(model, (X, X, True), fxq.recipe("tensorrt").with_rules(("*", None)))
    torch.testing.assert_close(prepared(X, X + 1), model(X, X + 1, True))
    torch.testing.assert_close(prepared(X, X + 1, True), model(X, X + 1, True))
    with pytest.raises(fxq.InputError, match="with twice = True, and is called with twice = False"):
        prepared(X, X, False)
    with pytest.raises(fxq.InputError, match="with a value for meta, and is called with meta = None"):
        prepared(X)


class Nested(nn.Module):
    def forward(self, images: list[Tensor], named: dict[str, Any], *more: Tensor) -> Tensor:
        total = sum(images) + sum(more)
        if named.get("twice") is not None:
            total = total * 2
        return total + 1 if named["flag"] else total * named["factor"]


def test_items_and_lengths_that_decide_are_held_too() -> None:
    named = {"flag": False, "factor": 2.0, "image": X}
    traced = trace(Nested(), ([X, X], named, X))
    other = {"image": X + 1, "factor": 3.0, "flag": False}  # a factor decides nothing
    assert torch.equal(traced([X, X], other, X), Nested()([X, X], other, X))
    with pytest.raises(fxq.InputError, match=r"with len\(images\) = 2, and is called with len\(images\) = 3"):
        traced([X] * 3, named, X)
    with pytest.raises(fxq.InputError, match=r"with len\(more\) = 1, and is called with len\(more\) = 2"):
        traced([X, X], named, X, X)
    with pytest.raises(
        fxq.InputError, match=r"with named\['flag'\] = False, and is called with named\['flag'\] = True"
    ):
        traced([X, X], {**named, "flag": True}, X)
    with pytest.raises(fxq.InputError, match=r"with keys\(named\) = .*, and is called with keys\(named\) = .*'twice'"):
        traced([X, X], {**named, "twice": True}, X)


def test_a_value_that_no_code_spells_is_held_too() -> None:
    class Colored(nn.Module):
        def forward(self, x: Tensor, color: Color = Color.RED, config: Any = None) -> Tensor:
            return x * 2 if color is Color.RED and config is not None else x

    config = object()
    traced = trace(Colored(), (X, Color.RED, config))
    assert torch.equal(copy.deepcopy(traced)(X, Color.RED, config), X * 2)
    for args in ((Color.BLUE, config), (Color.RED, object())):
        with pytest.raises(fxq.InputError, match="the model was traced with co"):
            traced(X, *args)


@pytest.mark.parametrize("question", ["isinstance", "type"])
def test_whether_it_is_a_list_or_a_tuple_is_held_where_the_model_asks(question: str) -> None:
    class Asks(nn.Module):
        def forward(self, xs: Any) -> Any:
            is_list = isinstance(xs, list) if question == "isinstance" else type(xs) is list
            return xs[0] + 2 if is_list else xs[0]

    gm = trace(Asks(), ([X, X],))
    assert torch.equal(gm([X, X]), X + 2)
    with pytest.raises(fxq.FxqError, match=r"with type\(xs\) = 'list', and is called with type\(xs\) = 'tuple'"):
        gm((X, X))


def test_sizes_are_no_arguments() -> None:
    class Sizes(nn.Module):
        def forward(self, x: Tensor, start: int = 0) -> Tensor:
            return x[:, start:] * 2 if x.shape[0] == 2 and len(x) > 1 else x

    traced = trace(Sizes(), (X,))
    assert torch.equal(traced(X, 3), Sizes()(X, 3))
    assert "check_argument" not in traced.code


@dataclass
class Settings:
    factor: float = 2.0


DEFAULTS: dict[str, Any] = {
    "dtype": torch.float64, "device": torch.device("cpu"), "function": torch.relu, "module": nn.ReLU(),
    "object": Settings(), "text": b"a", "array": np.ones(2, np.float32), "set": frozenset({1}),
}  # fmt: skip


@pytest.mark.parametrize("frontend", ["symbolic", "export"])
@pytest.mark.parametrize("default", DEFAULTS.values(), ids=DEFAULTS.keys())
def test_a_default_may_be_what_no_code_spells(default: Any, frontend: Any) -> None:
    class WithDefault(nn.Module):
        def forward(self, x: Tensor, how: Any = default) -> Tensor:
            if isinstance(how, torch.dtype):
                return x.to(how)
            return x * 3 if isinstance(how, bytes) else how(x) if callable(how) else x

    recipe = fxq.recipe("tensorrt").with_rules(("*", None))
    prepared = copy.deepcopy(fxq.convert(fxq.prepare(WithDefault().eval(), X, recipe, frontend=frontend)))
    expected = WithDefault()(X)
    for found in (prepared(X), prepared(X, default)):
        assert torch.equal(found, expected)
    if not isinstance(default, nn.Module):  # of which a copy is another
        assert torch.equal(prepared(X, copy.deepcopy(default)), expected)
    with pytest.raises(fxq.InputError, match=r"with how = .*, and is called with how = 'other'"):
        prepared(X, "other")


def test_a_tensor_as_default_is_refused_by_name() -> None:
    class WithTensor(nn.Module):
        def forward(self, x: Tensor, scale: Tensor = torch.ones(8)) -> Tensor:  # noqa: B008 - the case
            return x * scale

    with pytest.raises(fxq.TraceError, match="the default of forward's parameter 'scale' is a tensor"):
        fxq.prepare(WithTensor().eval(), X)


def test_not_a_number_is_what_it_is_and_no_other_number() -> None:
    class WithLimit(nn.Module):
        def forward(self, x: Tensor, limit: float = math.nan) -> Tensor:
            return x if math.isnan(limit) else x.clamp(max=limit)

    traced = trace(WithLimit().eval(), (X,))
    assert torch.equal(traced(X, float("nan")), X)
    with pytest.raises(fxq.InputError, match=r"with limit = nan, and is called with limit = 1.0"):
        traced(X, 1.0)
