"""``fxq quantize --report`` and ``fxq report``: a page and its data, with what a runtime makes of the file."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

Fxq = Callable[..., Result]
# Two that torch.fx traces, and files of which cannot be had.
NETS = """
import torch
from nets_of_a_user import Small


class NotForTorchExport(Small):
    def forward(self, x):
        if torch.compiler.is_exporting():
            raise NotImplementedError("not for export")
        return super().forward(x)


class ReturnsANumber(Small):
    def forward(self, x):
        return super().forward(x), 3
"""


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
    assert "latency was not measured: tensorrt_rtx compiles files, and does not run them here" in found["notes"]
    assert (tmp_path / "net.html").read_text().startswith("<!doctype html>")


def test_without_data_there_is_a_report_without_layers(fxq: Fxq, tmp_path: Path) -> None:
    call = ("quantize", "nets_of_a_user:small", "--input-shape", "1,3,12,12", "--recipe", "dynamic")
    result = fxq(*call, "--out", "net.onnx", "--report", "net.json")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "net.json").read_text())
    assert found["comparison"] is None
    assert list(found["latency"]) == ["net.onnx in onnxruntime", "the float model in onnxruntime"]
    assert {one["rounds"] for one in found["latency"].values()} == {30}
    assert any("the float model, as torch.onnx.export writes it for these sizes" in note for note in found["notes"])


def test_what_the_runtime_says_of_the_file_is_in_the_report(
    fxq: Fxq, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    call = ("quantize", "nets_of_a_user:small", "--calib-data", inputs, "--out", "net.onnx", "--report", "net.json")
    assert fxq(*call).exit_code == 0
    (finding,) = json.loads((tmp_path / "net.json").read_text())["findings"]
    assert finding["what"] == "tensorrt_rtx is not installed"


@pytest.fixture
def reported(fxq: Fxq, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return a function that runs ``fxq report`` for ONNX Runtime, and returns the data of the report."""
    (tmp_path / "more_nets.py").write_text(NETS)
    monkeypatch.delitem(sys.modules, "more_nets", raising=False)

    def run(model: str, *options: str) -> dict[str, Any]:
        call = ("report", model, "--calib-data", inputs, "--recipe", "onnxruntime", "--out", "net.json")
        result = fxq(*call, *options)
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads((tmp_path / "net.json").read_text())
        assert {"conv", "conv2", "add", "head"} <= {layer["path"] for layer in found["comparison"]["layers"]}
        assert found["quality"] is not None
        assert not list(tmp_path.glob("*.onnx"))
        return found

    return run


def test_the_command_measures_a_file_of_the_model_beside_the_float_one(
    reported: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = reported("nets_of_a_user:small", "--out", "net.html")
    assert found["size"]["file_bytes"] > 1000
    assert "fxq verify for onnxruntime: no rule is broken" in found["notes"]
    assert list(found["latency"]) == ["quantized.onnx in onnxruntime", "the float model in onnxruntime"]
    assert "Latency, the float model in onnxruntime" in (tmp_path / "net.html").read_text()


def test_the_command_leaves_the_file_out_where_it_is_told_to_and_says_so(
    reported: Callable[..., dict[str, Any]],
) -> None:
    found = reported("nets_of_a_user:small", "--no-file")
    assert found["size"]["file_bytes"] is None
    assert (found["latency"], found["findings"]) == ({}, [])
    assert found["notes"][-1].startswith("left out: size of the file, what fxq verify finds in it, and latency")
    assert found["notes"][-1].endswith("--no-file was given")


def test_a_float_model_that_torch_does_not_export_is_not_timed_and_the_report_says_why(
    reported: Callable[..., dict[str, Any]],
) -> None:
    found = reported("more_nets:NotForTorchExport")
    assert list(found["latency"]) == ["quantized.onnx in onnxruntime"]
    (note,) = [note for note in found["notes"] if "the float model was not timed" in note]
    assert note.endswith("torch.onnx.export does not take NotForTorchExport: not for export")


def test_a_model_of_which_no_file_can_be_written_has_a_report_that_says_why(
    reported: Callable[..., dict[str, Any]],
) -> None:
    found = reported("more_nets:ReturnsANumber")
    assert found["size"]["file_bytes"] is None
    assert "the model returns '3'" in found["notes"][-1]


def test_the_command_refuses_a_wrong_suffix(fxq: Fxq, inputs: Path) -> None:
    assert fxq("report", "nets_of_a_user:no_such", "--calib-data", inputs, "--out", "net.pdf").exit_code == 1


def test_a_wrong_place_is_refused_before_long_work(fxq: Fxq, inputs: Path, tmp_path: Path) -> None:
    call = ("quantize", "nets_of_a_user:no_such", "--calib-data", inputs, "--out", "net.onnx")
    result = fxq(*call, "--report", "net.pdf")
    assert result.exit_code == 1, result.output
    assert ".html for a page or .json for data" in " ".join(result.stderr.split())
    assert sorted(path.name for path in tmp_path.glob("net*")) == ["nets_of_a_user.py"]
