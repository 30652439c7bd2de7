"""What the command line prints of names that are not its own: as they are, never as markup or terminal codes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

Fxq = Callable[..., Result]

NAMES = ["[red]x", "[/]", "x[/red]", "a\x1b[31mb", "a\nb", "\ud800"]


@pytest.mark.parametrize("name", NAMES, ids=lambda text: ascii(text)[1:-1])
@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "{}"), ("explain", "{}:net"), ("explain", "nets_of_a_user:{}"), ("explain", "torchvision:{}"),
        ("explain", "nets_of_a_user:small", "--recipe", "{}"), ("recipe", "{}.toml"), ("targets", "{}"),
        ("targets", "{}.toml"), ("quantize", "nets_of_a_user:small", "--calib-data", "{}", "--out", "x.onnx"),
        ("quantize", "nets_of_a_user:small", "--calib-data", "x.npy", "--out", "{}"),
        ("quantize", "nets_of_a_user:small", "--calib-data", "x.npy", "--out", "x.onnx", "--weights", "{}.pt"),
        ("quantize", "nets_of_a_user:small", "--calib-data", "x.npy", "--out", "x.onnx", "--mean", "{}"),
        ("explain", "nets_of_a_user:small", "--input-shape", "{}"),
        ("explain", "nets_of_a_user:small", "--leave-in-float", "{}"), ("{}",), ("explain", "--{}"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_name_that_is_not_there_is_shown_as_it_is(fxq: Fxq, name: str, arguments: tuple[str, ...]) -> None:
    result = fxq(*(argument.replace("{}", name) for argument in arguments))
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    for letter in result.output:
        assert letter.isprintable() or letter == "\n"
    if name.isprintable():
        assert name in result.output.replace("\n", "")


def test_a_file_of_any_name_is_written_and_shown(fxq: Fxq, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32))
    name = "[red]\x1b[bold].onnx"
    result = fxq("quantize", "nets_of_a_user:small", "--calib-data", "x.npy", "--out", name)
    assert result.exit_code == 0, result.output
    assert (tmp_path / name).exists()
    assert r"[red]\x1b[bold].onnx" in result.stdout
    assert "\x1b" not in result.output
