"""fxq.save and fxq.load: the model that comes back computes, fits, trains and exports as the one that was saved."""

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from saved_models import MODELS, Mobile, calibrated, images, mobile
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxq
from fxq.nn import ScaledChannels
from fxq.state import find_state


def saved(model: GraphModule, folder: Path, given: nn.Module, **options: Any) -> GraphModule:
    fxq.save(model, folder / "model.fxq")
    return fxq.load(folder / "model.fxq", given, **options)


def everything(gm: GraphModule) -> dict[str, Any]:
    """Return what there is to know of a prepared model: graph, tensors, quantizers, what was seen, reasons."""
    tensors = {**dict(gm.named_parameters(remove_duplicate=False)), **dict(gm.named_buffers(remove_duplicate=False))}
    quantizers = {path: one for path, one in gm.named_modules() if isinstance(one, fxq.TensorQuantizer)}
    seen = {path: one.calibrator.state() for path, one in quantizers.items() if one.calibrator is not None}
    state = find_state(gm)
    assert state is not None
    return {
        "graph": [(node.op, node.name, str(node.target), str(node.args), str(node.kwargs)) for node in gm.graph.nodes],
        "modules": [(path, repr(module), module.training) for path, module in gm.named_modules()],
        "tensors": {name: (str(value.dtype), value.requires_grad, value.tolist()) for name, value in tensors.items()},
        "seen": {path: {name: value.tolist() for name, value in found.items()} for path, found in seen.items()},
        "explanation": fxq.explain(gm).to_dict(),
        "record": (state.record.entries, state.record.passes),
        "stage": state.stage,
        "recipe": state.recipe,
        "changes": (_values(state.changes.before), _values(state.changes.after), _values(state.changes.equivalent)),
    }


def _values(tensors: Mapping[str, Tensor | None]) -> dict[str, Any]:
    return {path: None if value is None else value.tolist() for path, value in tensors.items()}


@pytest.mark.parametrize("level", ["plain", "best"])
@pytest.mark.parametrize("name", MODELS)
def test_all_of_a_calibrated_model_comes_back(name: str, level: str, tmp_path: Path) -> None:
    _, kind, data = MODELS[name]
    prepared = calibrated(name, level)
    torch.manual_seed(9)
    loaded = saved(prepared, tmp_path, kind())
    assert everything(loaded) == everything(prepared)
    assert torch.equal(loaded(data(3, 5)), prepared(data(3, 5)))


def test_passes_put_modules_in_that_these_tests_save() -> None:
    assert any(isinstance(module, nn.Hardtanh) for module in calibrated("mobile", "fast").modules())
    assert any(isinstance(module, ScaledChannels) for module in calibrated("post_norm", "fast").modules())


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_is_calibrated_anew_from_where_it_began(name: str, tmp_path: Path) -> None:
    _, kind, data = MODELS[name]
    prepared = calibrated(name, "best")
    loaded = saved(prepared, tmp_path, kind())
    for gm in (prepared, loaded):
        fxq.calibrate(gm, fxq.Data(data(8, 7).split(4), held_out=0, progress=False))
    assert everything(loaded) == everything(prepared)


@pytest.mark.slow
def test_a_process_of_its_own_exports_the_same_bytes(tmp_path: Path) -> None:
    converted = fxq.convert(calibrated("mobile", "best"))
    fxq.save(converted, tmp_path / "mobile.fxq")
    fxq.export_onnx(converted, tmp_path / "mobile.onnx", check=False)
    prepared = calibrated("post_norm", "best")
    fxq.save(prepared, tmp_path / "post_norm.fxq")
    fxq.fit_ranges(prepared, "percentile", percentile=99.0)
    fxq.save(fxq.convert(prepared), tmp_path / "refitted.fxq")
    script = Path(__file__).with_name("saved_models.py")
    subprocess.run([sys.executable, script, tmp_path], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (tmp_path / "mobile_again.onnx").read_bytes() == (tmp_path / "mobile.onnx").read_bytes()
    assert not fxq.diff(tmp_path / "refitted_again.fxq", tmp_path / "refitted.fxq")


def test_a_converted_model_is_saved_as_it_was_converted(tmp_path: Path) -> None:
    prepared = calibrated("mobile")
    converted = fxq.convert(prepared)
    expected = converted(images(2))
    fxq.fit_ranges(prepared, "percentile", percentile=90.0)  # of the prepared one, later
    with torch.no_grad():
        prepared.fc.weight.zero_()
    loaded = saved(converted, tmp_path, Mobile())
    assert torch.equal(loaded(images(2)), expected)
    assert fxq.explain(loaded).to_dict() == fxq.explain(converted).to_dict()


def test_training_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    def trained(gm: GraphModule, steps: range) -> None:
        optimizer = torch.optim.SGD(gm.parameters(), lr=0.05)
        for step in steps:
            optimizer.zero_grad()
            F.cross_entropy(gm(images(4, step)), torch.arange(4)).backward()
            optimizer.step()

    learned = fxq.QuantDescriptor(learn_amax=True)
    recipe = fxq.recipe("tensorrt").with_rules(("up", fxq.QConfig(activation=learned)))
    prepared = fxq.prepare(mobile(), images(2), recipe, qat=True)
    fxq.calibrate(prepared, [images()], progress=False)
    prepared.train()
    prepared.first.weight.requires_grad_(False)
    prepared.down.eval()
    fxq.freeze_batchnorm(prepared)
    trained(prepared, range(2))
    fxq.freeze_batchnorm(prepared, frozen=False)
    prepared.train()
    prepared.down.eval()
    trained(prepared, range(2, 3))
    fxq.freeze_batchnorm(prepared)
    prepared.project.weight_quantizer.freeze()
    loaded = saved(prepared, tmp_path, Mobile())
    assert not loaded.project.weight_quantizer.is_tracking
    assert loaded.fc.weight_quantizer.is_tracking
    assert any("_amax" in name for name, _ in loaded.named_parameters())
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in prepared.named_parameters()]
    trained(prepared, range(3, 6))
    trained(loaded, range(3, 6))
    assert everything(loaded) == everything(prepared)


def test_a_model_trained_after_an_accuracy_pass_stays_so(tmp_path: Path) -> None:
    prepared = calibrated("mobile", "best")
    with torch.no_grad():
        prepared.fc.weight.mul_(1.5)
    loaded = saved(prepared, tmp_path, Mobile())
    for gm in (prepared, loaded):  # anew, from the trained weights
        fxq.calibrate(gm, fxq.Data(images(8).split(4), held_out=0, progress=False))
    assert everything(loaded) == everything(prepared)


def test_weights_have_the_models_own_names_and_no_data_is_in_the_file(tmp_path: Path) -> None:
    prepared = calibrated("mobile")
    fxq.save(prepared, tmp_path / "model.fxq")
    tensors = safetensors.torch.load_file(tmp_path / "model.fxq")
    assert torch.equal(tensors["first.weight"], prepared.first.weight)
    assert tensors["up._weight_quantizer._amax"].shape == (16, 1, 1, 1)
    assert not any(value.shape[1:] == (3, 8, 8) for value in tensors.values())


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.first(x)))

    prepared = fxq.prepare(Tied().eval(), torch.ones(1, 4))
    fxq.calibrate(prepared, [torch.randn(4, 4)], progress=False)
    loaded = saved(prepared, tmp_path, Tied())
    assert loaded.second.weight is loaded.first.weight
    assert torch.equal(loaded.second.weight, prepared.second.weight)
    assert "second.weight" not in safetensors.torch.load_file(tmp_path / "model.fxq")


def test_switches_and_calibrators_of_ones_own_come_back(tmp_path: Path) -> None:
    prepared = calibrated("mobile")
    prepared.fc.weight_quantizer.disable()
    quantizer = prepared.get_submodule("up_input_quantizer")
    quantizer.use_calibrator("minmax")
    quantizer.enable_clip()
    loaded = saved(prepared, tmp_path, Mobile())
    assert everything(loaded) == everything(prepared)
    assert not loaded.fc.weight_quantizer.is_enabled


def test_the_plans_of_the_file_count_and_not_those_of_a_pass_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = calibrated("mobile")
    fxq.save(prepared, tmp_path / "model.fxq")
    plan_ops = fxq.registered_passes()["plan_ops"].pass_type
    monkeypatch.setattr(plan_ops, "run", lambda self, rw: None)
    assert everything(fxq.load(tmp_path / "model.fxq", Mobile())) == everything(prepared)


def test_with_example_inputs_convert_compares_with_the_model_it_is_given(tmp_path: Path) -> None:
    model = mobile()
    prepared = fxq.prepare(model, images(4))
    fxq.calibrate(prepared, [images()], progress=False)
    fxq.save(prepared, tmp_path / "model.fxq")
    known = fxq.explain(fxq.convert(fxq.load(tmp_path / "model.fxq", model, images(4)))).quality
    assert known is not None
    assert known.against == "the original model"
    other = fxq.explain(fxq.convert(fxq.load(tmp_path / "model.fxq", Mobile(), images(4)))).quality
    assert other is not None
    assert other.against == "the traced float model"
    assert fxq.explain(fxq.convert(fxq.load(tmp_path / "model.fxq", Mobile()))).quality is None


def test_torch_save_keeps_the_computation_and_says_what_keeps_the_rest(tmp_path: Path) -> None:
    prepared = calibrated("mobile")
    torch.save(prepared, tmp_path / "model.pt")
    pickled = pickle.loads(pickle.dumps(prepared))  # what torch.save stores
    assert torch.equal(pickled(images(2)), prepared(images(2)))
    with pytest.raises(fxq.StageError, match=r"use fxq\.save"):
        fxq.convert(pickled)


@pytest.mark.parametrize("recipe", ["dynamic", "weight_only_int4", "onnxruntime"])
def test_recipes_with_and_without_data(recipe: str, tmp_path: Path) -> None:
    make, kind, data = MODELS["post_norm"]
    prepared = fxq.prepare(make(), data(2), recipe)
    if recipe == "onnxruntime":
        fxq.calibrate(prepared, [data()], progress=False)
    converted = fxq.convert(prepared)
    loaded = saved(converted, tmp_path, kind())
    assert torch.equal(loaded(data(3)), converted(data(3)))
