"""fxq.tune in the real runtimes, and what it refuses."""

from typing import Any

import pytest
import torch
from support.small import images, residual, snapshot

import fxq
from fxq.errors import InputError, RuntimeUnavailableError
from fxq.runtimes import RUNTIMES, get_runtime

BATCHES = [images(4, seed=5), images(4, seed=6)]


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
