"""Runtimes are found by name, by being a file of the package, and imported when they are used."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.runtime_files import RuntimeFiles
from support.small import images

import fxq
from fxq.errors import RuntimeUnavailableError
from fxq.runtimes import RUNTIMES, available, get_runtime

MODULES = {name: runtime_type.module for name, runtime_type in RUNTIMES.items()}
OWN_RUNTIME = """
from fxq.runtimes.runtime import Runtime

class Own(Runtime):
    name, module, package = "own", "numpy", "numpy"

    def bind(self, path, inputs):
        return lambda: [inputs]

    def executed_ops(self, path):
        return ()
"""


@pytest.fixture(scope="module")
def seen_by_a_copy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Copy the package, add one file to it, import the copy in a process of its own."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(Path(fxq.__file__).parent, folder / "fxq")
    (folder / "fxq" / "runtimes" / "own.py").write_text(OWN_RUNTIME)
    code = f"""
import json, sys, torch, fxq
from fxq.runtimes import available, get_runtime
imported = [name for name in {list(MODULES.values())} if name in sys.modules]
fxq.prepare(torch.nn.Linear(2, 2), torch.ones(1, 2))
onnx = [name for name in sys.modules if name.startswith("onnx") and "." not in name]
output = get_runtime("own").run("model.onnx", 7)
print(json.dumps({{"imported": imported, "onnx": onnx, "available": available(), "output": output}}))
"""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, cwd=folder)
    return json.loads(done.stdout)


def test_all_are_known_and_installed_here() -> None:
    assert set(RUNTIMES) >= {"onnxruntime", "openvino", "tensorrt_rtx"}
    assert available() == tuple(RUNTIMES)
    assert all(get_runtime(name).version[0].isdigit() for name in RUNTIMES)


def test_importing_fxq_imports_no_runtime(seen_by_a_copy: dict[str, Any]) -> None:
    assert seen_by_a_copy["imported"] == []


def test_preparing_imports_no_onnx_library(seen_by_a_copy: dict[str, Any]) -> None:
    assert seen_by_a_copy["onnx"] == []


def test_a_runtime_costs_one_file(seen_by_a_copy: dict[str, Any]) -> None:
    assert "own" in seen_by_a_copy["available"]
    assert seen_by_a_copy["output"] == [7]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tensorrt", {}, "unknown runtime 'tensorrt'; did you mean 'tensorrt_rtx'?"),
        ("tflite", {}, "unknown runtime 'tflite'; there are " + ", ".join(RUNTIMES)),
        ("openvino", {"optimize": False}, "runtime 'openvino' has no option 'optimize'; its options: threads"),
    ],
    ids=["close", "unknown", "option"],
)
def test_an_unknown_name_is_refused_with_what_there_is(name: str, options: dict, message: str) -> None:
    with pytest.raises(RuntimeUnavailableError) as error:
        get_runtime(name, **options)
    assert str(error.value) == message


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_that_is_not_installed_says_what_to_install(
    files: RuntimeFiles, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULES[name], None)  # what makes Python refuse the import
    assert name not in available()
    with pytest.raises(
        RuntimeUnavailableError, match=f"'{name}' is not installed: pip install {RUNTIMES[name].package}"
    ):
        get_runtime(name).executed_ops(files.static["onnxruntime"])


def test_a_missing_runtime_is_an_import_error_too(files: RuntimeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match="pip install openvino"):
        get_runtime("openvino").run(files.static["openvino"], images(4).numpy())
