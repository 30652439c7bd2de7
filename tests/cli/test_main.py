"""The command itself: help, version, how errors look."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import pytest
from typer.testing import Result

from fxq import ModelError

Fxq = Callable[..., Result]


def test_no_command_shows_help(fxq: Fxq) -> None:
    result = fxq()
    for command in ("demo", "quantize", "explain", "passes", "targets", "recipe"):
        assert f"\n│ {command} " in result.stdout + result.stderr


@pytest.mark.parametrize(
    "command", ["demo", "quantize", "compare", "sensitivity", "report", "explain", "targets", "recipe"]
)
def test_help_has_an_example_and_fits_in_80_columns(fxq: Fxq, command: str) -> None:
    result = fxq(command, "--help")
    assert result.exit_code == 0
    assert f"fxq {command} " in result.stdout.rpartition("╰")[2]  # below the options
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout  # nothing was cut


@pytest.mark.parametrize(
    ("command", "option", "twin"),
    [("quantize", "--target", "--recipe"), ("verify", "--recipe", "--target"), ("quantize", "--output", "--out")],
)
def test_an_option_of_another_name_here_is_suggested(fxq: Fxq, command: str, option: str, twin: str) -> None:
    result = fxq(command, "x", option, "y")
    assert result.exit_code == 2
    assert f"No such option: {option} (Possible options: {twin})" in result.stderr


def test_the_version_is_the_packages(fxq: Fxq) -> None:
    assert fxq("--version").stdout == f"fxq {version('fxq')}\n"


def test_python_m_fxq_is_the_same_command() -> None:
    found = subprocess.run([sys.executable, "-m", "fxq", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout == f"fxq {version('fxq')}\n"


def test_an_error_is_one_block_on_stderr_without_a_traceback(fxq: Fxq) -> None:
    result = fxq("explain", "torchvision:resnet19")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: torchvision has no model 'resnet19'; did you mean")
    assert result.stderr.count("\n") == 1


def test_traceback_shows_where_an_error_comes_from(fxq: Fxq, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(fxq("--traceback", "explain", "torchvision:resnet19").exception, ModelError)
    monkeypatch.setenv("FXQ_TRACEBACK", "1")
    assert isinstance(fxq("explain", "torchvision:resnet19").exception, ModelError)


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantise",),
        ("quantize", "nets_of_a_user:small", "--out", "x.onnx"),
        ("quantize", "nets_of_a_user:small", "--out", "x.onnx", "--calib-data", ".", "--mean", "a,b"),
        ("quantize", "nets_of_a_user:small", "--out", "x.onnx", "--calib-data", ".", "--batch-size", "0"),
        ("explain", "nets_of_a_user:small", "--input-shape", "1,3,-4"),
    ],
    ids=["unknown command", "no calibration data", "no number", "empty batch", "no shape"],
)
def test_a_wrong_call_exits_with_2(fxq: Fxq, arguments: tuple[str, ...]) -> None:
    assert fxq(*arguments).exit_code == 2
