"""``fxq demo``: what a newcomer runs first."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from typer.testing import Result

from fxq import ModelError
from fxq.cli.models import import_extra

Fxq = Callable[..., Result]


def percentages(result: Result) -> list[float]:
    row = next(line for line in result.stdout.splitlines() if "accuracy" in line)
    return [float(found) for found in re.findall(r"([\d.]+)%", row)]


def test_the_quick_demo_compares_three_files_and_says_where_they_are(fxq: Fxq, tmp_path: Path) -> None:
    result = fxq("demo", "--quick", "--out", "files/of/demo")
    assert result.exit_code == 0, result.output
    accuracies = percentages(result)
    # 1000 digits and two epochs: measured 88 %. 2 % are five of the 250 digits.
    assert min(accuracies) > 75
    assert max(accuracies) - min(accuracies) <= 2
    assert re.search(r"residual adds found +│ +– │ +4 │ +4 │", result.stdout)
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
