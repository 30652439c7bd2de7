"""Inputs whose shapes a file does not tell at all: ONNX wants one, and runtimes take such files all the same."""

from pathlib import Path

import pytest
from support.qdq_files import QdqFile

import fxq
from fxq.errors import OnnxFileError


def test_a_shape_of_unknown_rank_is_asked_for_as_a_whole(tmp_path: Path) -> None:
    path, file = tmp_path / "model.onnx", QdqFile(shape=None)
    file.save(path, file.conv(file.qdq("x", "a"), "conv"))
    with pytest.raises(OnnxFileError, match=r"does not tell the shape of input 'x'.* --shape x:1x3x224x224 .*'1x3x224"):
        fxq.bench(path, runtimes=["onnxruntime"])
    report = fxq.bench(path, runtimes=["onnxruntime"], shapes={"x": "1x4x8x8"}, threads=1, rounds=1, warm_up=0)
    assert len(report.rows) == 1
