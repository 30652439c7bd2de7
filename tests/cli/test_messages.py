"""What the command line says while it works, how much of it, and its exit codes."""

import logging
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

import fxq as package
from fxq.cli.hints import PHRASES, in_words_of_the_shell

Fxq = Callable[..., Result]


@pytest.fixture
def call(tmp_path: Path) -> tuple[str, ...]:
    """A call that works."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))
    return ("quantize", "nets_of_a_user:small", "--calib-data", "x.npy", "--out", "x.onnx")


@pytest.mark.parametrize("command", [("--version",), ("--help",), ("quantize", "--help")], ids=" ".join)
def test_help_and_version_do_not_import_torch(command: tuple[str, ...]) -> None:
    code = f"import sys\nsys.argv = ['fxq', *{command!r}]\nfrom fxq.cli.main import main\n"
    code += "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr == "False\n"


def test_the_package_knows_its_version_and_its_names_without_torch() -> None:
    code = "import sys, fxq; print(fxq.__version__, 'torch' in sys.modules, 'prepare' in dir(fxq), fxq.graph.__name__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == f"{package.__version__} False True fxq.graph\n"
    with pytest.raises(AttributeError, match="module 'fxq' has no attribute 'prepar'"):
        package.prepar  # noqa: B018


def test_functions_with_the_name_of_their_module_are_functions_whatever_is_imported_first() -> None:
    submodules = {found.name for found in pkgutil.iter_modules(package.__path__)}
    names = {name for name in package.__all__ if name in submodules and callable(getattr(package, name))}
    code = "import sys, importlib, fxq\n"
    code += f"for name in {sorted(names)}: importlib.import_module('fxq.' + name)\n"
    code += f"print([callable(getattr(fxq, name)) for name in {sorted(names)}])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert names == {"auto_quantize", "compare", "explain", "recipe", "sensitivity"}
    assert found.stdout == f"{[True] * 5}\n"


def test_a_program_that_uses_fxq_gets_no_handler_but_the_null_one() -> None:
    assert [type(handler) for handler in logging.getLogger("fxq").handlers] == [logging.NullHandler]


def test_verbose_shows_each_pass_and_quiet_none_of_the_steps(fxq: Fxq, call: tuple[str, ...]) -> None:
    usual, verbose, quiet = fxq(*call), fxq(*call, "-v"), fxq("-q", *call)
    assert "placing quantizers" in usual.stderr
    assert "fold_batchnorm" not in usual.stderr
    assert re.search(r"normalized: fold_batchnorm, \d+ entries, ", verbose.stderr)
    assert quiet.stderr == ""
    assert "SQNR" in quiet.stdout
    # The level of the logger is the program's again.
    assert logging.getLogger("fxq").level == logging.NOTSET


def test_verbose_shows_the_traceback_of_an_error(fxq: Fxq) -> None:
    plain = fxq("explain", "torchvision:resnet19")
    verbose = fxq("-v", "explain", "torchvision:resnet19")
    assert "Traceback" not in plain.stderr
    assert "Traceback" in verbose.stderr
    assert verbose.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]
    assert (plain.exit_code, verbose.exit_code) == (1, 1)


def test_a_fault_that_is_no_refusal_has_an_exit_code_of_its_own(
    fxq: Fxq, monkeypatch: pytest.MonkeyPatch, call: tuple[str, ...]
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("out of the blue")

    monkeypatch.setattr("fxq.cli.quantize.explain", fail)
    result = fxq(*call)
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1] == (
        "error: a fault of fxq or of the model's own code: KeyError: 'out of the blue'; --verbose shows where"
    )


def test_warnings_of_python_are_one_line(fxq: Fxq, monkeypatch: pytest.MonkeyPatch, call: tuple[str, ...]) -> None:
    import warnings

    from fxq.cli import quantize

    before = quantize.load_model

    def warn(source: object) -> object:
        warnings.warn("something is odd", UserWarning, stacklevel=1)
        return before(source)  # type: ignore[arg-type]

    monkeypatch.setattr(quantize, "load_model", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = fxq(*call)
    assert "warning: something is odd\n" in result.stderr
    assert "UserWarning" not in result.stderr


def test_each_phrase_that_the_shell_translates_is_one_of_fxqs() -> None:
    root = Path(__file__).parents[2]
    files = [file for tree in ("fxq", "passes") for file in (root / tree).rglob("*.py") if "cli" not in file.parts]
    # Messages are written over several literals and with values in braces: only the words count.
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text() for file in files))
    missing = [phrase for phrase, _ in PHRASES if phrase not in source]
    assert missing == []


def test_advice_is_given_in_options() -> None:
    text = 'name the module as a leaf: recipe.replace(leaf_modules=("a.b",)); it is then left in float'
    assert in_words_of_the_shell(text) == "name the module as a leaf: --leaf 'a.b'; it is then left in float"


def test_an_interruption_is_one_line_and_leaves_no_file(
    fxq: Fxq, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: tuple[str, ...]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        assert list(tmp_path.glob(".fxq-export-*"))
        raise KeyboardInterrupt

    monkeypatch.setattr("fxq.export.exporter.check_qdq", interrupt)
    result = fxq(*call)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted: no file was left half-written"
    assert not [*tmp_path.glob("x.onnx*"), *tmp_path.glob(".fxq-*")]


def test_a_file_for_a_module_and_a_mean_of_bytes_are_corrected(fxq: Fxq, call: tuple[str, ...]) -> None:
    named = fxq("quantize", "nets_of_a_user.py:small", *call[2:])
    assert (named.exit_code, "did you mean nets_of_a_user:small?" in named.stderr) == (1, True)
    scaled = fxq(*call, "--mean", "127.5,127.5,127.5", "--std", "255,255,255")
    assert (scaled.exit_code, "Write --mean 0.5,0.5,0.5 --std 1,1,1" in scaled.stderr) == (1, True)


def test_a_glob_that_the_shell_wrote_out_is_told_to_be_quoted(fxq: Fxq) -> None:
    data = ("--calib-data", "a.jpg", "b.jpg", "c.jpg")
    result = fxq("quantize", "nets_of_a_user:small", *data, "--out", "x.onnx")
    assert result.exit_code == 2
    assert "the glob in quotes, --calib-data" in " ".join(result.stderr.replace("│", " ").split())
    assert "in quotes" not in fxq("quantize", "nets_of_a_user:small", "b.jpg", "--out", "x.onnx").stderr
