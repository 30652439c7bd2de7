"""The graph passes of an export: constants are computed, and rightly."""

import logging
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper

from fxq.export.clean import clean
from fxq.runtimes import get_runtime


@pytest.mark.parametrize(
    ("shape", "indexed", "axis"),
    [((1, 80), (1, 12), 1), ((80, 1), (80, 1), 0), ((5, 4), (2, 3), 0), ((2, 70, 3), (2, 5, 3), -2)],
    ids=["more than 64 columns", "more than 64 rows", "fewer elsewhere", "three dimensions"],
)
def test_elements_gathered_from_constants_are_computed_right(
    shape: tuple[int, ...], indexed: tuple[int, ...], axis: int, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.WARNING)
    numbers = np.random.default_rng(0)
    size = shape[axis]
    data, at = numbers.integers(0, 99, shape), numbers.integers(-size, size, indexed)
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.INT64, indexed) for name in "xy")
    nodes = [
        # Known only after others are computed, as the positions of BERT are.
        helper.make_node("Neg", ["negative"], ["at"]),
        helper.make_node("GatherElements", ["data", "at"], ["taken"], axis=axis),
        helper.make_node("Neg", ["taken"], ["minus"]),
        helper.make_node("Add", ["x", "minus"], ["y"]),
    ]
    stored = [numpy_helper.from_array(data, "data"), numpy_helper.from_array(-at, "negative")]
    graph = helper.make_graph(nodes, "gather", [x], [y], stored)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = ir.from_proto(whole)
    clean(model)
    assert [node.op_type for node in model.graph] == ["Add"]
    assert not caplog.records
    given = np.zeros(indexed, np.int64)
    onnx.save(ir.to_proto(model), tmp_path / "model.onnx")
    (found,) = get_runtime("onnxruntime").run(tmp_path / "model.onnx", given)
    assert np.array_equal(found, -torch.gather(torch.tensor(data), axis, torch.tensor(at % size)).numpy())


def test_constants_that_are_no_numbers_are_computed_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    """log(0) behind a mask, as in the distances of T5; warnings are errors here."""
    caplog.set_level(logging.WARNING)
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (2,)) for name in "xy")
    nodes = [helper.make_node("Log", ["zero"], ["log"]), helper.make_node("Add", ["x", "log"], ["y"])]
    stored = [numpy_helper.from_array(np.zeros(2, np.float32), "zero")]
    graph = helper.make_graph(nodes, "log", [x], [y], stored)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    clean(model)
    assert [node.op_type for node in model.graph] == ["Add"]
    assert not caplog.records
