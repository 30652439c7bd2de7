"""``fxq quantize --report``: a page and its data beside the file."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

Fxq = Callable[..., Result]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.npy"
    np.save(path, np.random.default_rng(0).standard_normal((8, 3, 12, 12)).astype(np.float32))
    return path


def test_a_page_and_its_data_are_written(fxq: Fxq, inputs: Path, tmp_path: Path) -> None:
    call = ("quantize", "nets_of_a_user:small", "--calib-data", inputs, "--out", "net.onnx", "--batch-size", 4)
    result = fxq(*call, "--report", "net.html", "--report", "net.json")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "net.json").read_text())
    assert found["size"]["file_bytes"] == (tmp_path / "net.onnx").stat().st_size
    assert [layer["path"] for layer in found["comparison"]["layers"]] == ["conv", "conv2", "add", "head"]
    assert found["comparison"]["samples"] == 8
    assert len(found["sensitivity"]["groups"]) == 3
    assert found["quality"]["against"] == "the original model"
    assert "fxq verify for tensorrt: no rule is broken" in found["notes"]
    assert found["latency"] == {}
    assert (tmp_path / "net.html").read_text().startswith("<!doctype html>")


def test_without_data_there_is_a_report_without_layers(fxq: Fxq, tmp_path: Path) -> None:
    call = ("quantize", "nets_of_a_user:small", "--input-shape", "1,3,12,12", "--recipe", "dynamic")
    result = fxq(*call, "--out", "net.onnx", "--report", "net.json")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "net.json").read_text())
    assert found["comparison"] is None
    assert found["latency"]["net.onnx in onnxruntime"]["rounds"] == 30


def test_what_the_runtime_says_of_the_file_is_in_the_report(
    fxq: Fxq, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    call = ("quantize", "nets_of_a_user:small", "--calib-data", inputs, "--out", "net.onnx", "--report", "net.json")
    assert fxq(*call).exit_code == 0
    (finding,) = json.loads((tmp_path / "net.json").read_text())["findings"]
    assert finding["what"] == "tensorrt_rtx is not installed"


def test_the_command_writes_a_page_without_a_file_of_the_model(fxq: Fxq, inputs: Path, tmp_path: Path) -> None:
    call = ("report", "nets_of_a_user:small", "--calib-data", inputs, "--out", "net.html", "--out", "net.json")
    result = fxq(*call)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "net.json").read_text())
    assert [layer["path"] for layer in found["comparison"]["layers"]] == ["conv", "conv2", "add", "head"]
    assert found["quality"] is not None
    assert (tmp_path / "net.html").read_text().startswith("<!doctype html>")
    assert fxq(*call[:-1], "net.pdf").exit_code == 1


def test_a_wrong_place_is_refused_before_long_work(fxq: Fxq, inputs: Path, tmp_path: Path) -> None:
    call = ("quantize", "nets_of_a_user:no_such", "--calib-data", inputs, "--out", "net.onnx")
    result = fxq(*call, "--report", "net.pdf")
    assert result.exit_code == 1, result.output
    assert ".html for a page or .json for data" in " ".join(result.stderr.split())
    assert sorted(path.name for path in tmp_path.glob("net*")) == ["nets_of_a_user.py"]
