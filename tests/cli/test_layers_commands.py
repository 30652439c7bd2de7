"""``fxq compare`` and ``fxq sensitivity``: tables for people, plain data for programs, a picture on request."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

import fxq as package

Fxq = Callable[..., Result]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Eight inputs for the nets of a user."""
    path = tmp_path / "inputs.npy"
    np.save(path, np.random.default_rng(0).standard_normal((8, 3, 12, 12)).astype(np.float32))
    return path


def test_compare_shows_each_layer_and_draws_it(fxq: Fxq, inputs: Path, tmp_path: Path) -> None:
    result = fxq("compare", "nets_of_a_user:small", "--calib-data", inputs, "--plot", "layers.png")
    assert result.exit_code == 0, result.output
    assert "4 layers on 8 samples; outputs: output " in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_compare_as_json_is_plain_data(fxq: Fxq, inputs: Path) -> None:
    call = ("compare", "nets_of_a_user:small", "--calib-data", inputs, "--json", "--leave-in-float", "head")
    found = json.loads(fxq(*call, "--recipe", "openvino").stdout)
    assert [layer["path"] for layer in found["layers"]] == ["conv", "conv2", "add"]
    assert found["samples"] == 8
    assert 20 < found["layers"][0]["local"]["sqnr_db"] < 60


def test_sensitivity_shows_the_most_sensitive_first(fxq: Fxq, inputs: Path) -> None:
    result = fxq("sensitivity", "nets_of_a_user:small", "--calib-data", inputs)
    assert result.exit_code == 0, result.output
    assert "conv2, add" in result.stdout
    call = ("sensitivity", "nets_of_a_user:small", "--calib-data", inputs, "--mode", "one_float", "--json")
    found = json.loads(fxq(*call).stdout)
    assert found["mode"] == "one_float"
    assert found["float_value"] == "inf"
    assert [group["paths"] for group in found["groups"]] == [["conv"], ["conv2", "add"], ["head"]]
    assert max(group["value"] for group in found["groups"]) > found["quantized_value"] > 20


@pytest.mark.parametrize(
    "options",
    [pytest.param(("--accuracy", "best"), marks=pytest.mark.slow), ("--accuracy", "best", "--max-samples", 4), ()],
    ids=str,
)
def test_the_model_is_that_of_quantize_with_the_same_options(
    fxq: Fxq, tmp_path: Path, options: tuple[object, ...]
) -> None:
    values = np.random.default_rng(0).standard_normal((40, 3, 12, 12)).astype(np.float32)
    np.save(tmp_path / "inputs.npy", values)
    given = ("nets_of_a_user:small", "--calib-data", "inputs.npy", *options)
    result = fxq("quantize", *given, "--out", "small.onnx", "--save", "small.fxq")
    assert result.exit_code == 0, result.output
    from nets_of_a_user import small

    model = small().eval()
    expected = package.compare(model, package.load(tmp_path / "small.fxq", model), [torch.from_numpy(values)])
    compared = json.loads(fxq("compare", *given, "--json").stdout)
    assert compared["layers"][0]["weight"]["mse"] == expected.layers[0].weight.mse
    assert compared["outputs"]["output"]["mse"] == pytest.approx(expected.outputs["output"].mse, rel=1e-4)
    fxq("report", *given, "--no-file", "--out", "report.json")
    reported = json.loads((tmp_path / "report.json").read_text())
    assert reported["comparison"]["outputs"]["output"]["mse"] == pytest.approx(expected.outputs["output"].mse, rel=1e-4)
    sensitive = json.loads(fxq("sensitivity", *given, "--json").stdout)
    assert sensitive["quantized_value"] == pytest.approx(expected.outputs["output"].sqnr_db, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "code", "match"),
    [
        (("compare",), 2, "--calib-data"),
        (("sensitivity", "--mode", "one", "--calib-data", "inputs.npy"), 2, "it is one_quantized or one_float"),
        (("compare", "--plot", "layers", "--calib-data", "inputs.npy"), 1, "the suffix says the format"),
        (("compare", "--plot", "no/layers.png", "--calib-data", "inputs.npy"), 1, "the directory no does not exist"),
        (("compare", "--plot", "layers.xyz", "--calib-data", "inputs.npy"), 1, "cannot write layers.xyz"),
        (("compare", "--image-size", "8", "--calib-data", "inputs.npy"), 2, "it is for images in files"),
        (("compare", "--calib-data", "none.npy"), 1, "none.npy"),
    ],
    ids=["no-data", "mode", "no-suffix", "no-folder", "format", "image-option", "missing"],
)
def test_a_wrong_call_is_refused(fxq: Fxq, inputs: Path, options: tuple[str, ...], code: int, match: str) -> None:
    result = fxq(options[0], "nets_of_a_user:small", *options[1:])
    assert result.exit_code == code, result.output
    assert match in " ".join(result.stderr.replace("│", " ").split())
