"""``fxq tune``: a recipe with its reasons, the model on request, and what is refused before long work."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from fxq import quantize
from fxq import recipe as find_recipe
from fxq.runtimes import Latency
from fxq.tuning import Tuned
from fxq.tuning.report import Measured

Fxq = Callable[..., Result]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.npy"
    np.save(path, np.random.default_rng(0).standard_normal((8, 3, 12, 12)).astype(np.float32))
    return path


def test_the_recipe_says_what_was_measured_and_quantizes(
    fxq: Fxq, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def tuned(model: Any, batches: Any, recipe: Any, *where: Any, **options: Any) -> Tuned:
        """What ``fxq.tune`` is asked; the search itself has tests of its own."""
        calls.append((recipe.name, *where[:2], tuple(where[2][0].shape), options["budget_s"]))
        recipe = recipe.with_rules(("conv2", None))
        converted = quantize(model, batches, recipe, where[2], progress=False)
        one, latency = Measured(converted, recipe, Latency((2.0, 2.0)), None), Latency((3.0, 3.0))
        reasons, notes = ("conv2\n[[rules]]: 1.50",), ("interrupted",)
        return Tuned(one, one, latency, (("conv2",),), 4, reasons, "a runtime", 0.01, (), notes, 7.0)

    monkeypatch.setattr("fxq.cli.tune.tune", tuned)
    out, onnx = tmp_path / "tuned.toml", tmp_path / "tuned.onnx"
    options = ("--threads", 1, "--budget", 1, "--out", out, "--onnx", onnx, "--leave-in-float", "head")
    result = fxq("tune", "nets_of_a_user:small", "--calib-data", inputs, *options)
    assert result.exit_code == 0, result.output
    assert calls == [("onnxruntime", None, 1, (1, 3, 12, 12), 1.0)]
    assert "1 of 4 groups" in result.stdout
    assert "interrupted" in result.stdout
    assert onnx.is_file()
    header, said = out.read_text().splitlines()[:4], "conv2\\n[[rules]]: 1.50"
    assert header == [
        "# By fxq tune in a runtime:",
        "# tuned 2.000 ms, default 2.000 ms, float 3.000 ms.",
        "# 1 of 4 groups of operations are in float:",
        f"# {said}",
    ]
    assert [rule.match for rule in find_recipe(out).rules] == ["head", "conv2"]
    result = fxq("tune", "nets_of_a_user:small", "--calib-data", inputs, "--out", out, "--json")
    assert json.loads(result.stdout)["in_float"] == [["conv2"]]


@pytest.mark.parametrize(
    ("options", "code", "match"),
    [
        ((), 2, "--out"),
        (("--out", "tuned.onnx"), 1, "the recipe is TOML, name it .toml"),
        (("--out", "no/tuned.toml"), 1, "the directory no does not exist"),
        (("--out", "tuned.toml", "--onnx", "tuned.pb"), 1, "the file name must end in .onnx"),
        (("--out", "tuned.toml", "--recipe", "tensorrt"), 1, "'tensorrt' is not measured on this machine"),
        (("--out", "tuned.toml", "--runtime", "ort"), 1, "unknown runtime 'ort'"),
        (("--out", "tuned.toml", "--budget", "0"), 2, "--budget"),
        (("--out", "tuned.toml", "--image-size", "8"), 2, "it is for images in files"),
    ],
    ids=["no out", "out", "folder", "onnx", "target", "runtime", "budget", "images"],
)
def test_a_wrong_call_says_what_is_wrong(
    fxq: Fxq, inputs: Path, options: tuple[str, ...], code: int, match: str
) -> None:
    result = fxq("tune", "nets_of_a_user:small", "--calib-data", inputs, *options)
    assert result.exit_code == code, result.output
    assert match in result.output
