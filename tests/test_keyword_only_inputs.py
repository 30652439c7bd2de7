"""Inputs that forward takes by keyword only: given by name to the model, inputs like any other of its graph."""

import math
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.batches import Inputs

FRONTENDS = ("symbolic", "export")


class OnlyKeywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(10, 8), nn.Linear(8, 4)

    def forward(self, *, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding(input_ids)
        return self.linear(x if mask is None else x * mask.unsqueeze(-1))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor, shift: float = 0.5, *, squared: bool = False, scale: Tensor) -> Tensor:
        y = self.linear(x) * scale + shift
        return y * y if squared else y


class Decorated(Scaled):
    forward = torch.no_grad()(Scaled.forward)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part, self.head = Scaled(), nn.Linear(4, 4)

    def forward(self, x: Tensor, shift: float = 0.5, *, scale: Tensor) -> Tensor:
        y = self.part(x, shift, scale=scale)
        return self.head(y) if float(y.detach().sum()) > -math.inf else y


def scaled_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.randn(4, 8, generator=generator), "scale": torch.rand(4, 1, generator=generator) + 0.5}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("form", ["dict", "args and kwargs", "in order"])
def test_model_goes_through_all_stages(tmp_path: Path, frontend: Any, form: str) -> None:
    model, given = Scaled().eval(), scaled_inputs()
    x, scale = given.values()
    examples: Any = {"dict": given, "args and kwargs": ((x,), {"scale": scale}), "in order": (x, 0.5, False, scale)}
    prepared = fxq.prepare(model, examples[form], "onnxruntime", frontend=frontend)
    fxq.calibrate(prepared, [given])
    converted = fxq.convert(prepared)
    expected = model(**given)
    for gm in (prepared, converted):
        torch.testing.assert_close(gm(**given), expected, atol=0.05, rtol=0)  # int8
        assert torch.equal(gm(x, scale=scale), gm(**given))
    quality = fxq.explain(converted).quality
    assert quality is not None
    assert quality.against == "the original model"
    report = fxq.export_onnx(converted, tmp_path / "m.onnx", example_inputs=given)
    assert report.quality is not None
    assert report.quality.against == "the original model"
    assert [value.name for value in onnx.load(report.path).graph.input] == ["x", "scale"]


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_forward_of_keywords_only(frontend: Any) -> None:
    model = OnlyKeywords().eval()
    ids, mask = torch.randint(0, 10, (4, 5)), torch.rand(4, 5)
    prepared = fxq.prepare(model, {"input_ids": ids, "mask": mask}, "onnxruntime", frontend=frontend)
    fxq.calibrate(prepared, [{"input_ids": ids, "mask": mask, "labels": ids}])
    found = fxq.convert(prepared)(input_ids=ids, mask=mask)
    torch.testing.assert_close(found, model(input_ids=ids, mask=mask), atol=0.05, rtol=0)  # int8


def test_batches_alone_are_enough() -> None:
    model, given = Scaled().eval(), scaled_inputs()
    converted = fxq.quantize(model, [given], "onnxruntime")
    torch.testing.assert_close(converted(**given), model(**given), atol=0.05, rtol=0)  # int8


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_required_input_behind_an_optional_one_is_asked_for(frontend: Any) -> None:
    given = scaled_inputs()
    prepared = fxq.prepare(Scaled().eval(), given, "onnxruntime", frontend=frontend)
    with pytest.raises(fxq.InputError, match="traced with a value for scale"):
        prepared(given["x"])


def test_decorated_forward_is_exported() -> None:
    model, given = Decorated().eval(), scaled_inputs()
    prepared = fxq.prepare(model, given, "onnxruntime")
    fxq.calibrate(prepared, [given])
    torch.testing.assert_close(prepared(**given), model(**given), atol=0.05, rtol=0)  # int8


def test_islands_are_called_by_keyword() -> None:
    model, given = Untraceable().eval(), scaled_inputs()
    prepared = fxq.prepare(model, given, "onnxruntime", untraceable="islands")
    assert isinstance(prepared.get_submodule("model.part"), GraphModule)
    fxq.calibrate(prepared, [given])
    found = fxq.convert(prepared)(given["x"], scale=given["scale"])
    torch.testing.assert_close(found, model(**given), atol=0.05, rtol=0)  # int8


def test_inputs_of_islands_behind_a_default_that_no_code_spells_go_by_name() -> None:
    class Activated(Untraceable):
        def forward(  # type: ignore[override]
            self, x: Tensor, activation: Any = torch.relu, scale: Tensor | None = None
        ) -> Tensor:
            return activation(super().forward(x, scale=x[:, :1] if scale is None else scale))

    model, x = Activated().eval(), scaled_inputs()["x"]
    prepared = fxq.prepare(model, x, "onnxruntime", untraceable="islands")
    fxq.calibrate(prepared, [x])
    torch.testing.assert_close(prepared(x), model(x), atol=0.05, rtol=0)  # int8


@pytest.mark.parametrize("frontend", ["symbolic", "export", "auto"])
def test_model_that_fails_is_told_apart_from_one_that_does_not_trace(frontend: Any) -> None:
    given = {**scaled_inputs(), "x": torch.randn(4, 9)}
    with pytest.raises(fxq.InputError, match="fails on the example inputs"):
        fxq.prepare(Scaled().eval(), given, "onnxruntime", frontend=frontend)


def test_missing_input_is_named() -> None:
    with pytest.raises(fxq.InputError, match=r"missing a required.*'scale'"):
        fxq.prepare(Scaled().eval(), torch.randn(4, 8), "onnxruntime")


def test_keywords_behind_a_star_are_refused() -> None:
    class Starred(Scaled):
        def forward(self, x: Tensor, *rest: Tensor, scale: Tensor) -> Tensor:
            return super().forward(x, scale=scale) + sum(rest)

    with pytest.raises(fxq.InputError, match=r"'scale' by keyword only, behind \*rest"):
        fxq.prepare(Starred().eval(), scaled_inputs(), "onnxruntime")


def test_surplus_inputs_stay_for_the_model_to_refuse() -> None:
    inputs = Inputs((1, 2, 3, 4, 5), {})
    assert inputs.fitting(Scaled()) == inputs
    assert Inputs((1, 2, 3, 4), {}).fitting(Scaled()) == Inputs((1, 2), {"squared": 3, "scale": 4})
