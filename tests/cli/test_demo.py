"""``fxq demo``: what a newcomer runs first."""

import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from rich.console import Console
from typer.testing import Result

from fxq import ModelError
from fxq.cli.demo_report import Column, results_table
from fxq.cli.models import import_extra
from fxq.runtimes.tensorrt_rtx import TensorRtRtx

Fxq = Callable[..., Result]


def percentages(result: Result) -> list[float]:
    row = next(line for line in result.stdout.splitlines() if "accuracy" in line)
    return [float(found) for found in re.findall(r"([\d.]+)%", row)]


@pytest.mark.slow  # it trains
def test_a_sample_of_the_demo_compares_three_files_and_says_where_they_are(fxq: Fxq, tmp_path: Path) -> None:
    result = fxq("demo", "--quick", "--out", "files/of/demo")
    assert result.exit_code == 0, result.output
    accuracies = percentages(result)
    # 1000 digits and two epochs: measured 88 %. 2 % are five of the 250 digits.
    assert min(accuracies) > 75
    assert max(accuracies) - min(accuracies) <= 2
    assert re.search(r"residual adds found +│ +– │ +4 │ +4 │", result.stdout)
    # tensorrt.onnx has no latency on a CPU, and what TensorRT-RTX's compiler makes of it where that is installed.
    assert re.search(r"latency, one image +│ +[\d.]+ ms │ +– │ +[\d.]+ ms │", result.stdout)
    if TensorRtRtx.is_installed():
        kernels = re.search(r"TensorRT: int8 kernels +│ +0 of \d+ │ +(\d+) of (\d+) │ +– │", result.stdout)
        assert kernels
        assert kernels[1] == kernels[2] != "0"
        assert re.search(r"TensorRT: activations +│ +[\d.]+ MB │ +[\d.]+ MB │ +– │", result.stdout)
    assert "Wrote files/of/demo" in result.stdout
    written = {file.name for file in (tmp_path / "files/of/demo").iterdir()}
    assert written == {"float.onnx", "tensorrt.onnx", "onnxruntime.onnx", "digits.pt", "calibration.npy"}
    operators = {node.op_type for node in onnx.load(tmp_path / "files/of/demo/tensorrt.onnx").graph.node}
    assert "QuantizeLinear" in operators

    # The command that the demo recommends, word for word.
    command = re.search(r"fxq (quantize [^\n]*\\\n[^\n]*)", result.stdout)
    assert command
    assert fxq(*shlex.split(command[1].replace("\\\n", " "))).exit_code == 0


@pytest.mark.slow
def test_the_full_demo_is_accurate(fxq: Fxq) -> None:
    result = fxq("demo")
    assert result.exit_code == 0, result.output
    # Measured 96.9 % at seed 0; int8 may lose three of 1000 digits.
    accuracies = percentages(result)
    assert accuracies[0] > 94
    assert min(accuracies) > accuracies[0] - 0.5


def test_an_unwritable_directory_is_an_error_before_any_work(fxq: Fxq, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    result = fxq("demo", "--out", "taken")
    assert result.exit_code == 1
    assert "cannot write to taken" in result.stderr
    assert "reading" not in result.stderr


def test_a_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    with pytest.raises(ModelError, match=r"the demo needs no_such_package: pip install 'fxq\[demo\]'"):
        import_extra("no_such_package.data", "demo", "the demo")


def test_without_tensorrt_the_table_says_what_would_show_it() -> None:
    column = Column("tensorrt", 0.9, 30.0, 1000, None, 5, 1)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_table([column]))
    text = " ".join(console.export_text().split())
    assert "TensorRT: int8 kernels" not in text
    assert "with the packages tensorrt-rtx-cu12-bindings tensorrt-rtx-cu12-libs the demo shows" in text
