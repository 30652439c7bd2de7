"""fxq.save, fxq.load and fxq.diff of models of which parts were prepared."""

from pathlib import Path
from typing import Any

import pytest
import torch
from island_models import Detector, Gated, images, made
from torch import nn
from torch.fx import GraphModule

import fxq

UNUSED = pytest.mark.filterwarnings("ignore:'predictor.unused' never runs:UserWarning")
BATCHES = [(images(seed),) for seed in range(6)]
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def calibrated(level: str = "fast", **options: Any) -> GraphModule:
    recipe = fxq.recipe("tensorrt").with_accuracy(level)
    prepared = fxq.prepare(made(Detector), BATCHES[0], recipe, untraceable="islands", **options)
    fxq.calibrate(prepared, BATCHES, progress=False)
    return prepared


def of_other_weights(kind: type[nn.Module] = Detector) -> nn.Module:
    torch.manual_seed(7)
    return kind().eval()


def assert_same_outputs(first: nn.Module, second: nn.Module) -> None:
    one, other = first(images(9))[0], second(images(9))[0]
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@UNUSED
@pytest.mark.parametrize("inputs", [None, (images(5),)], ids=["made up", "given"])
def test_it_goes_on_with_the_same_numbers(tmp_path: Path, inputs: Any) -> None:
    prepared = calibrated()
    fxq.save(prepared, tmp_path / "a.fxq")
    found = fxq.load(tmp_path / "a.fxq", of_other_weights(), inputs)
    assert not fxq.diff(found, prepared)
    assert fxq.explain(found).to_dict() == fxq.explain(prepared).to_dict()
    assert_same_outputs(found, prepared)
    assert_same_outputs(fxq.convert(found), fxq.convert(prepared))
    for model in (prepared, found):
        fxq.fit_ranges(model, "percentile", percentile=99.0)
    assert_same_outputs(found, prepared)
    for model in (prepared, found):
        fxq.calibrate(model, BATCHES, progress=False)  # anew, from the weights of before calibration
    assert_same_outputs(found, prepared)


@UNUSED
def test_a_converted_one_is_converted_again_and_writes_the_same_files(tmp_path: Path) -> None:
    converted = fxq.convert(calibrated("plain"))
    fxq.save(converted, tmp_path / "a.fxq")
    found = fxq.load(tmp_path / "a.fxq", of_other_weights())
    assert_same_outputs(found, converted)
    assert fxq.explain(found).quality == fxq.explain(converted).quality
    for name, model in (("one", converted), ("other", found)):
        fxq.export_onnx(model, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


@UNUSED
def test_training_goes_on(tmp_path: Path) -> None:
    prepared = calibrated("plain", qat=True).train()
    fxq.save(prepared, tmp_path / "a.fxq")
    found = fxq.load(tmp_path / "a.fxq", of_other_weights())
    assert found.training
    for model in (prepared, found):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(images(1), [torch.zeros(4)] * 2)["loss"].backward()
        optimizer.step()
    assert not fxq.diff(found, prepared)


def test_islands_of_bare_layers_have_their_names(tmp_path: Path) -> None:
    prepared = fxq.prepare(made(Gated), X, "onnxruntime", untraceable="islands")
    fxq.calibrate(prepared, [X], progress=False)
    fxq.save(prepared, tmp_path / "a.fxq")
    found = fxq.load(tmp_path / "a.fxq", of_other_weights(Gated))
    assert torch.equal(found(X), prepared(X))
    found.model.last.get_submodule("0").weight_quantizer.amax = 9.0
    assert [one.quantizer for one in fxq.diff(tmp_path / "a.fxq", found).ranges] == ["model.last.0._weight_quantizer"]


class Narrower(Gated):
    """Its last part lacks the rectifier."""

    def __init__(self) -> None:
        super().__init__()
        self.last[1] = nn.Identity()


def test_another_model_is_refused_with_what_differs(tmp_path: Path) -> None:
    prepared = fxq.prepare(made(Gated), X, untraceable="islands")
    fxq.calibrate(prepared, [X], progress=False)
    fxq.save(prepared, tmp_path / "a.fxq")
    with pytest.raises(
        fxq.SavedModelError, match=r"something else than the saved one.*\n- _1 = call_module 1"
    ) as caught:
        fxq.load(tmp_path / "a.fxq", of_other_weights(Narrower))
    assert "raised for the island 'last'" in caught.value.__notes__
    other = fxq.prepare(made(Narrower), X, untraceable="islands")
    assert "- last: _1 = call_module 1 (_0,) {}" in fxq.diff(prepared, other).graph
