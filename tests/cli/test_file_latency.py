"""Which files are timed for the report, and what is said where one is not."""

import dataclasses
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from fxq.cli.file_latency import compared, time_beside_float, why_not_timed
from fxq.registry import get_target
from fxq.runtimes import Latency
from fxq.verification.bench_report import BenchRow


@pytest.mark.parametrize(
    ("runtime", "why"),
    [
        ("onnxruntime", ""),
        ("", "target 'onnxruntime' names no runtime that fxq knows"),
        ("tensorrt_rtx", "tensorrt_rtx compiles files, and does not run them here"),
        ("openvino", "openvino is not installed: pip install openvino"),
    ],
    ids=["here", "none", "compiles", "not-installed"],
)
def test_a_target_whose_files_cannot_be_timed_says_why(runtime: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    target = get_target("onnxruntime")
    of_runtime = dataclasses.replace(target, file=dataclasses.replace(target.file, runtime=runtime))
    assert why_not_timed(of_runtime) == why


def test_a_file_that_the_runtime_does_not_take_is_not_timed_and_the_note_says_why(tmp_path: Path) -> None:
    path = tmp_path / "quantized.onnx"
    latency, notes = time_beside_float(path, "onnxruntime", {}, nn.Linear(4, 2).eval(), (torch.ones(1, 4),))
    assert latency == {}
    assert notes == [f"latency was not measured: {path}: there is no such file"]


def test_a_file_that_the_runtime_refuses_does_not_lend_its_name_to_the_float_model(tmp_path: Path) -> None:
    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("NoSuchOperator", ["x"], ["y"])], "refused", shape[:1], shape[1:])
    path = tmp_path / "quantized.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    latency, notes = time_beside_float(path, "onnxruntime", {}, nn.Linear(4, 2).eval(), (torch.ones(1, 4),))
    assert "quantized.onnx in onnxruntime" not in latency
    assert "NoSuchOperator" in " ".join(notes)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ((1.9, 2.0, 2.5), "takes 2.00 times as long (1.90 to 2.50 in half of the rounds)"),
        ((0.9, 1.2, 1.4), "takes longer is too noisy to tell: 0.90 to 1.40 times as long"),
    ],
    ids=["certain", "noisy"],
)
def test_the_float_model_is_compared_where_the_rounds_agree(ratios: tuple[float, float, float], said: str) -> None:
    assert compared(BenchRow("onnxruntime", "float.onnx", Latency((1.0,) * 6), ratios)).endswith(said)
