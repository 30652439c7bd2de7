"""A file that is checked is loaded once for all runs alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hand_built import Builder
from torch import Tensor

from fxq.errors import ExportError
from fxq.export import export_onnx
from fxq.export.written_file import WrittenFile
from fxq.runtimes import get_runtime
from fxq.runtimes.onnxruntime import OnnxRuntime


def rows(count: int) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(count))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[OnnxRuntime]:
    """Return what becomes the list of all sessions, by their options."""
    found: list[OnnxRuntime] = []
    load = OnnxRuntime._session

    def noted(self: OnnxRuntime, *args: Path) -> object:
        found.append(self)
        return load(self, *args)

    monkeypatch.setattr(OnnxRuntime, "_session", noted)
    return found


def test_an_export_loads_its_file_as_it_is_written_and_optimized(loaded: list[OnnxRuntime], tmp_path: Path) -> None:
    build = Builder()
    gm = build.finish(build.call(F.linear, build.input(), build.read("weight", torch.eye(4))))
    path = export_onnx(gm, tmp_path / "model.onnx", rows(3)).path
    assert [runtime.optimize for runtime in loaded] == [False, True]  # the second for another batch, too
    loaded.clear()
    file = WrittenFile(path)
    for count in (1, 2):
        (found,) = file.run([rows(count)])
        np.testing.assert_array_equal(found, get_runtime("onnxruntime", optimize=False).run(path, rows(count))[0])
    assert len(loaded) == 3  # two of them of our own
    file.run([rows(1)], optimize=True)
    file.run([rows(1)], optimize=True, without=("MatMulAddFusion",))
    assert len(loaded) == 5


def test_inputs_that_do_not_fit_are_refused_each_time(tmp_path: Path) -> None:
    build = Builder()
    gm = build.finish(build.call(torch.relu, build.input()))
    file = WrittenFile(export_onnx(gm, tmp_path / "model.onnx", rows(3)).path)
    for _ in range(2):
        with pytest.raises(ExportError, match="input"):
            file.run([rows(3)[:, :2]])
    assert file.run([rows(2)])[0].shape == (2, 4)
