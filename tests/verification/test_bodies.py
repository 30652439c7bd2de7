"""Bodies of If, Loop and Scan are held to the rules of single nodes; that places in them are not is said aloud."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.file_findings import findings, told
from support.qdq_files import CHANNELS, QdqFile

from fxq.verification.finding import ERROR, WARNING


def graph(file: QdqFile, inputs: dict[str, int], outputs: dict[str, int]) -> onnx.GraphProto:
    """Return what is in a file as the body of a node; inputs and outputs with their types."""
    ends = [[helper.make_tensor_value_info(*end, None) for end in each.items()] for each in (inputs, outputs)]
    stored = [numpy_helper.from_array(value, name) for name, value in file.stored.items()]
    return helper.make_graph(file.nodes, "body", *ends, stored)


def loop(file: QdqFile, body: QdqFile, result: str, start: str = "x", dtype: int = TensorProto.FLOAT) -> str:
    """Run a body that makes ``result`` of "carried" twice."""
    go_on = body.op("Identity", "go", name="go_on")
    inputs = {"step": TensorProto.INT64, "go": TensorProto.BOOL, "carried": dtype}
    runs = graph(body, inputs, {go_on: TensorProto.BOOL, result: dtype})
    trips, yes = file.store("trips", np.array(2)), file.store("yes", np.array(True))
    return file.op("Loop", trips, yes, start, name="loop", body=runs)


def scan(file: QdqFile, body: QdqFile, result: str) -> str:
    """Run a body that makes ``result`` of "carried" for each image."""
    copy = body.op("Identity", "image", name="copy")
    float32 = TensorProto.FLOAT
    runs = graph(body, {"carried": float32, "image": float32}, {result: float32, copy: float32})
    file.nodes.append(
        helper.make_node("Scan", ["x", "x"], ["state", "images"], name="scan", body=runs, num_scan_inputs=1)
    )
    return "state"


def choose(file: QdqFile, *branches: tuple[QdqFile, str], name: str = "if") -> str:
    """Run the one or the other."""
    chosen = [graph(body, {}, {result: TensorProto.FLOAT}) for body, result in branches]
    yes = file.store(f"{name}.yes", np.array(True))
    return file.op("If", yes, name=name, then_branch=chosen[0], else_branch=chosen[-1])


def integer_conv(file: QdqFile) -> str:
    return file.conv(file.qdq("x", "input"), "conv")


def affine_sequence(value: str) -> tuple[QdqFile, str]:
    """Return a body with a zero point and a list of tensors, neither of which TensorRT takes."""
    body = QdqFile()
    pair = body.qdq(value, "affine", zero=3)
    parts = body.op("SequenceConstruct", pair, pair, name="sequence")
    return body, body.op("SequenceAt", parts, body.store("first", np.array(0)), name="at")


IN_BODY = {(ERROR, "zero-point", "affine/q"), (ERROR, "operator", "sequence"), (ERROR, "operator", "at")}


@pytest.mark.parametrize("name", ["loop", "scan", "if"])
def test_the_nodes_of_a_body_are_held_to_the_rules_of_single_nodes(tmp_path: Path, name: str) -> None:
    file = QdqFile()
    y = integer_conv(file)
    if name == "loop":
        y = loop(file, *affine_sequence("carried"), start=y)
    elif name == "scan":
        y = scan(file, *affine_sequence("carried"))
    else:
        y = choose(file, affine_sequence(y))
    path = file.save(tmp_path / "model.onnx", y)
    assert told(path, "tensorrt") == {*IN_BODY, (WARNING, "control-flow", name)}
    said = {finding.node: finding.what for finding in findings(path, "tensorrt")}
    node = {"loop": "Loop", "scan": "Scan", "if": "If"}[name]
    assert said["affine/q"].startswith(f"QuantizeLinear 'affine/q' in the body of {node} '{name}' has a zero point")
    assert "where quantizers stand in its body" in said[name]
    assert "was not checked" in said[name]


def test_bodies_within_bodies_are_looked_into(tmp_path: Path) -> None:
    file, branch = QdqFile(), QdqFile()
    y = integer_conv(file)
    path = file.save(
        tmp_path / "model.onnx", choose(file, (branch, loop(branch, *affine_sequence("carried"), start=y)))
    )
    expected = {*IN_BODY, (WARNING, "control-flow", "if"), (WARNING, "control-flow", "loop")}
    assert told(path, "tensorrt") == expected


def test_names_that_repeat_in_bodies_are_told_apart(tmp_path: Path) -> None:
    file = QdqFile()
    y = file.conv(file.qdq("x", "affine", zero=3), "conv")
    branches = []
    for prefix in ("yes", "no"):
        body = QdqFile()
        result = body.qdq(y, f"{prefix}_affine", zero=3)
        for node in body.nodes:
            node.name = node.name.removeprefix(f"{prefix}_")
        branches.append((body, result))
    path = file.save(tmp_path / "model.onnx", choose(file, *branches))
    said = [finding.what for finding in findings(path, "tensorrt") if finding.rule == "zero-point"]
    assert [text.partition(" has a zero point")[0] for text in said] == [
        "QuantizeLinear 'affine/q'",
        *["QuantizeLinear 'affine/q' in the body of If 'if'"] * 2,
    ]


def test_a_body_may_read_what_is_stored_outside_and_what_it_stores_itself(tmp_path: Path) -> None:
    file, body = QdqFile(), QdqFile()
    ends = (file.store("scale", np.array(0.1, np.float32)), file.store("zero", np.array(0, np.int8)))
    y = integer_conv(file)
    codes = body.op("QuantizeLinear", "carried", *ends, name="inner/q")
    pair = body.op("DequantizeLinear", codes, *ends, name="inner/dq")
    weight = body.store("weight", np.ones((CHANNELS, CHANNELS, 3, 3), np.float32))
    scales = (
        body.store("scales", np.full(CHANNELS, 0.1, np.float32)),
        body.store("zeros", np.zeros(CHANNELS, np.int8)),
    )
    weight = body.op("QuantizeLinear", body.op("Neg", weight, name="neg"), *scales, name="weight/q", axis=0)
    weight = body.op("DequantizeLinear", weight, *scales, name="weight/dq", axis=0)
    path = file.save(tmp_path / "model.onnx", loop(file, body, body.conv(pair, "inner", weight), start=y))
    assert told(path, "tensorrt") == {(WARNING, "control-flow", "loop")}


def test_what_leaves_a_body_is_no_output_of_the_model_and_codes_may_enter(tmp_path: Path) -> None:
    file, body = QdqFile(), QdqFile()
    ends = (file.store("scale", np.array(0.1, np.float32)), file.store("zero", np.array(0, np.int8)))
    codes = file.op("QuantizeLinear", integer_conv(file), *ends, name="outer/q")
    inner = body.op("Relu", body.op("DequantizeLinear", "carried", *ends, name="inner/dq"), name="relu")
    inner = body.op("QuantizeLinear", inner, *ends, name="inner/q")
    codes = loop(file, body, inner, start=codes, dtype=TensorProto.INT8)
    path = file.save(tmp_path / "model.onnx", file.op("DequantizeLinear", codes, *ends, name="outer/dq"))
    assert not [one for one in told(path, "tensorrt") if one[2].startswith("inner")]


def test_what_a_body_takes_for_codes_is_named(tmp_path: Path) -> None:
    file, body = QdqFile(), QdqFile()
    ends = (body.store("scale", np.array(0.1, np.float32)), body.store("zero", np.array(0, np.int8)))
    y = integer_conv(file)
    cast = body.op("Cast", "carried", name="cast", to=TensorProto.INT8)
    values = body.op("DequantizeLinear", cast, *ends, name="inner/dq")
    path = file.save(tmp_path / "model.onnx", loop(file, body, values, start=y))
    assert (ERROR, "codes-source", "inner/dq") in told(path, "tensorrt")


def test_several_scales_of_an_activation_are_named_in_a_body(tmp_path: Path) -> None:
    file, body = QdqFile(), QdqFile()
    ends = (
        body.store("scales", np.full(CHANNELS, 0.1, np.float32)),
        body.store("zeros", np.zeros(CHANNELS, np.int8)),
    )
    y = integer_conv(file)
    codes = body.op("QuantizeLinear", y, *ends, name="inner/q", axis=1)
    values = body.op("DequantizeLinear", codes, *ends, name="inner/dq", axis=1)
    path = file.save(tmp_path / "model.onnx", choose(file, (body, values)))
    assert told(path, "tensorrt") == {(WARNING, "activation-axis", "inner/q"), (WARNING, "control-flow", "if")}


def test_what_an_if_gives_is_not_stored_though_its_condition_is(tmp_path: Path) -> None:
    file, body = QdqFile(), QdqFile()
    y = integer_conv(file)
    chosen = choose(file, (body, body.op("Sin", y, name="sin")))
    path = file.save(tmp_path / "model.onnx", file.op("Softmax", file.qdq(chosen, "lone"), name="softmax"))
    assert (WARNING, "lone-quantizer", "lone/q") in told(path, "tensorrt")


def test_an_activation_in_a_body_does_not_fuse_with_a_layer_outside(tmp_path: Path) -> None:
    other = QdqFile()
    without = (other, other.op("Identity", "x", name="copy"))
    file, body = QdqFile(), QdqFile()
    y = file.conv(file.qdq("x", "input", np.uint8), "conv", bias=file.bias("bias"))
    inner = body.qdq(body.op("Relu", y, name="relu"), "inner", np.uint8)
    path = file.save(tmp_path / "fused.onnx", choose(file, (body, inner), without))
    assert (WARNING, "output-quantizer", "conv") in told(path, "onnxruntime")
    file, body = QdqFile(), QdqFile()
    y = file.qdq(integer_conv(file), "outer")
    path = file.save(tmp_path / "split.onnx", choose(file, (body, body.op("Relu", y, name="relu")), without))
    assert (WARNING, "quantizer-before-activation", "outer/q") not in told(path, "tensorrt")
