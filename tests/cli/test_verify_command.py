"""``fxq verify``: what it prints, and its exit codes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from support.qdq_files import QdqFile, residual_block
from typer.testing import Result

Fxq = Callable[..., Result]


def test_a_file_that_breaks_no_rule_is_exit_code_0(fxq: Fxq, tmp_path: Path) -> None:
    residual_block(tmp_path / "model.onnx")
    result = fxq("verify", "model.onnx", "--target", "tensorrt")
    assert result.exit_code == 0, result.output
    assert "model.onnx for tensorrt: no rule is broken" in result.output
    assert "tensorrt_rtx" in result.output


def test_a_broken_rule_is_exit_code_1_and_json_has_all_of_it(fxq: Fxq, tmp_path: Path) -> None:
    residual_block(tmp_path / "model.onnx", on_skip=False)
    result = fxq("verify", "model.onnx", "--target", "tensorrt", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["ok"], found["target"]) == (False, "tensorrt")
    first = found["findings"][0]
    assert (first["rule"], first["node"], first["severity"]) == ("residual-quantizer", "add", "warning")
    assert first["fix"]
    assert found["kinds"]["correlation"] == 2
    assert found["traffic_mb"] > 0
    assert {"name", "kind", "inputs", "outputs", "fused"} == set(found["executed"][0])


def test_what_cannot_be_verified_is_exit_code_2(fxq: Fxq, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_text("no ONNX")
    assert fxq("verify", "bad.onnx", "--target", "tensorrt").exit_code == 2
    file = QdqFile(shape=("batch", 4, 8, 8))
    file.save(tmp_path / "open.onnx", file.conv(file.qdq("x", "a"), "conv"))
    result = fxq("verify", "open.onnx", "--target", "tensorrt")
    assert result.exit_code == 2
    assert "--shape x:1x4x8x8" in result.output
    assert fxq("verify", "open.onnx", "--target", "tensorrt", "--shape", "x:1x4x8x8").exit_code == 0
    assert fxq("verify", "open.onnx", "--target", "tensorrt", "--shape", "1x4x8x8").exit_code == 2
    assert fxq("verify", "open.onnx", "--target", "no_such").exit_code == 2


def test_names_in_a_file_are_shown_as_they_are(fxq: Fxq, tmp_path: Path) -> None:
    file = QdqFile()
    weight = file.store("weight", np.ones((4, 4, 3, 3), np.float32))
    file.save(tmp_path / "model.onnx", file.conv(file.qdq("x", "a"), "[red]conv\x1b[31m", weight))
    result = fxq("verify", "model.onnx", "--target", "openvino")
    assert result.exit_code == 1
    assert "[red]conv\\x1b[31m" in result.output
    assert "\x1b" not in result.output


def test_bench_prints_a_row_for_each_file_and_refuses_what_is_none(fxq: Fxq, tmp_path: Path) -> None:
    residual_block(tmp_path / "model.onnx")
    arguments = ("--runtime", "onnxruntime", "--rounds", 2, "--threads", 1)
    result = fxq("bench", "model.onnx", "model.onnx", *arguments)
    assert result.exit_code == 0, result.output
    assert result.output.count("onnxruntime") == 2
    found = json.loads(fxq("bench", "model.onnx", *arguments, "--json").stdout)
    assert found["rows"][0]["rounds"] == 2
    assert fxq("bench", "none.onnx").exit_code == 2
    assert fxq("bench", "model.onnx", "--runtime", "tensorrt_rtx").exit_code == 2
