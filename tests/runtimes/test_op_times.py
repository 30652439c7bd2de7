"""How long each operation of a file takes, by the runtime's own clock."""

from pathlib import Path

import numpy as np
import pytest
from support.small import images, residual

import fxq
from fxq.errors import InputError, RuntimeUnavailableError
from fxq.runtimes import get_runtime

BATCHES = [images(4, seed=5)]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_runtime_tells_how_long_each_operation_takes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    fxq.export_onnx(fxq.quantize(residual(), BATCHES, name, progress=False), path, dynamic_batch=False, check=False)
    times = get_runtime(name, threads=1).op_times(path, [np.asarray(images(2))], rounds=3)
    assert any(op.name.startswith("conv1/Conv") for op in times)
    assert sum(op.ms for op in times) > 0
    with pytest.raises(InputError, match="the file wants"):
        get_runtime(name).op_times(path, [np.zeros(3, np.float32)])


def test_a_compiler_has_no_times(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="tensorrt_rtx does not tell how long"):
        get_runtime("tensorrt_rtx").op_times(tmp_path / "net.onnx", [])
