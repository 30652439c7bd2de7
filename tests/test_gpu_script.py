"""The tests for a GPU run where little is installed: fxq quantizes with no more than their script asks for."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "cuda"
CODE = """
import sys

sys.modules.update(dict.fromkeys(sys.argv[1:]))  # importing them fails
import torch, fxq
x = torch.randn(8, 4)
for recipe in ("tensorrt", "onnxruntime"):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
    prepared = fxq.prepare(model, x, recipe, qat=True)
    fxq.calibrate(prepared, [x], progress=False)
    prepared.train()(x).sum().backward()
    fxq.convert(prepared.eval())
"""


@pytest.mark.slow
def test_a_sample_is_quantized_with_what_the_script_asks_for() -> None:
    found = re.search(r"for name in \((.*?)\) if not", SCRIPT.read_text())
    assert found is not None
    asked = set(re.findall(r'"(\w+)"', found[1]))
    needed = {re.split(r"[^\w-]", text)[0].lower() for text in importlib.metadata.requires("fxq") or ()}
    installed = {
        module: {one.lower() for one in packages}
        for module, packages in importlib.metadata.packages_distributions().items()
    }
    missing = needed - {package for module in asked for package in installed[module]}
    absent = [module for module, packages in installed.items() if packages & missing]
    assert "safetensors" in absent
    assert "onnx" in absent
    command = [sys.executable, "-W", "ignore", "-c", CODE, *absent]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
