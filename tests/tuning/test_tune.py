"""fxq.tune in the real runtimes, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small import images, residual, snapshot
from torch import nn

import fxq
from fxq.errors import InputError, RuntimeUnavailableError
from fxq.runtimes import RUNTIMES, get_runtime
from fxq.tuning.timing import Speedup

BATCHES = [images(4, seed=5), images(4, seed=6)]


@pytest.mark.slow  # the next one tunes too
def test_a_model_is_tuned_in_a_real_runtime() -> None:
    model = residual()
    before = snapshot(model)
    tuned = fxq.tune(model, iter(BATCHES), threads=1, example_inputs=images(3), budget_s=0.1, progress=False)
    assert snapshot(model) == before
    version = get_runtime("onnxruntime").version
    assert tuned.runtime == f"onnxruntime {version}, 1 threads, inputs float32 3x1x8x8"
    assert tuned.groups == 5
    assert tuned.trials[0].why == "all"
    assert "the budget of 0.1 s ended the search" in tuned.notes
    assert not tuned.speedup.is_slower
    assert tuned.default.quality is not None
    assert tuned.default.quality.samples == 8
    again = fxq.quantize(model, BATCHES, fxq.Recipe.from_toml(tuned.recipe.to_toml()), progress=False)
    assert torch.equal(again(BATCHES[0]), tuned.converted(BATCHES[0]))


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_search_to_its_end_returns_what_was_measured(name: str, tmp_path: Path) -> None:
    """Whatever is faster here: what is claimed is what was timed, and the recipe makes that model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)).eval()
    tuned = fxq.tune(model, BATCHES, name, threads=1, progress=False)
    assert tuned.runtime == f"{name} {get_runtime(name).version}, 1 threads, inputs float32 1x1x8x8"
    assert not [note for note in tuned.notes if "did not run" in note or "not timed" in note or "profile" in note]
    for latency in (tuned.default.latency, tuned.in_float_latency):
        assert not Speedup.of(latency, tuned.result.latency).is_faster(0.0)
    kept = [trial.why for trial in tuned.trials if trial.verdict == "faster"]
    assert [reason.partition(": ")[0] for reason in tuned.reasons] in (kept, [])
    assert (tuned.in_float == ()) == (tuned.result is tuned.default)
    default = fxq.quantize(model, BATCHES, name, progress=False)
    assert torch.equal(default(BATCHES[0]), tuned.default.converted(BATCHES[0]))
    path = tmp_path / "tuned.onnx"
    fxq.export_onnx(tuned.converted, path)
    with torch.no_grad():
        expected = tuned.converted(BATCHES[0]).numpy()
    (found,) = get_runtime(name, threads=1).run(path, [BATCHES[0].numpy()])
    # Between the quantizers OpenVINO may compute in bfloat16, 8 bits of mantissa; a code may flip.
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
    again = fxq.quantize(model, BATCHES, fxq.Recipe.from_toml(tuned.recipe.to_toml()), progress=False)
    assert fxq.explain(again).nodes == fxq.explain(tuned.converted).nodes
    assert torch.equal(again(BATCHES[0]), tuned.converted(BATCHES[0]))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"recipe": "tensorrt"}, RuntimeUnavailableError, "'tensorrt' is not measured on this machine: tensorrt_rtx "),
        ({"recipe": fxq.Target("mine")}, RuntimeUnavailableError, "'mine' names no runtime .* one of onnxruntime, op"),
        ({"runtime": "onnxruntim"}, RuntimeUnavailableError, "did you mean 'onnxruntime'"),
        ({"threads": 0}, InputError, "threads must be a whole number from 1"),
        ({"budget_s": 0}, InputError, "budget_s is a number of seconds above 0, got 0"),
        ({"budget_s": True}, InputError, "budget_s is a number"),
        ({"forward": lambda gm, batch: gm(batch)}, InputError, "give it example_inputs"),
        ({"batches": [{"z": images(1)}]}, InputError, "the model's inputs are x"),
        ({"batches": [torch.zeros(2, 3, 8, 8)]}, InputError, "fails on the example inputs"),
    ],
    ids=["compiles only", "no runtime", "misspelt", "threads", "budget", "bool", "forward", "keys", "shape"],
)
def test_what_cannot_be_tuned_is_refused(options: dict[str, Any], error: type[Exception], match: str) -> None:
    given = dict(options)
    batches, recipe = given.pop("batches", BATCHES), given.pop("recipe", "onnxruntime")
    if isinstance(recipe, fxq.Target):
        recipe = fxq.Recipe(target=recipe)
    with pytest.raises(error, match=match):
        fxq.tune(residual(), batches, recipe, progress=False, **given)


def test_a_runtime_that_is_not_installed_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RUNTIMES["openvino"], "is_installed", classmethod(lambda cls: False))
    with pytest.raises(RuntimeUnavailableError, match="openvino is not installed: pip install openvino"):
        fxq.tune(residual(), BATCHES, "openvino", progress=False)
