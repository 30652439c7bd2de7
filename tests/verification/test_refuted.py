"""What the rules of a file say, and the plan of the runtime disproves; the plans are written by hand here."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from support.qdq_files import CHANNELS, QdqFile

from fxq.registry import get_target
from fxq.runtimes import ExecutedOp, OpTensor
from fxq.targets import Derived, Target
from fxq.verification.case import Case, name_of
from fxq.verification.executed_rules import EXECUTED_RULES
from fxq.verification.onnx_file import OnnxFile
from fxq.verification.plans import codes_around, node_of
from fxq.verification.refuted import not_refuted
from fxq.verification.rules import FILE_RULES


def op(name: str, kind: str, inputs: str, output: str, *fused: str) -> ExecutedOp:
    tensors = [tuple(OpTensor(*part.split(":"), None) for part in text.split()) for text in (inputs, output)]
    return ExecutedOp(name, kind, *tensors, fused)


def left(path: Path, target: str | Target, ops: list[ExecutedOp]) -> set[tuple[str, str]]:
    """Return rule and node of what the rules of the file say that is still said beside the plan."""
    case = Case(OnnxFile.read(path), target if isinstance(target, Target) else get_target(target))
    findings = [finding for rule in FILE_RULES for finding in rule(case)]
    told = list(EXECUTED_RULES[case.target.file.runtime](case, ops)) if ops else []
    return {(one.rule, one.node) for one in not_refuted(case, findings, told, tuple(ops))}


def int8_conv(path: Path) -> Path:
    """As ONNX Runtime wants it, but for the type of the codes, and a bias in float."""
    file = QdqFile()
    bias = file.store("bias", np.ones(CHANNELS, np.float32))
    return file.save(path, file.qdq(file.conv(file.qdq("x", "input"), "conv", bias=bias), "output"))


CODES, BIAS = ("activation-codes", "conv"), ("bias-type", "conv")
IN_INTEGERS = [op("conv", "QLinearConv", "x:uint8", "y:uint8")]


def in_float(codes: str) -> list[ExecutedOp]:
    dequantize = op("input/dq", "DequantizeLinear", f"x:{codes}", "values:float32")
    quantize = op("output/q", "QuantizeLinear", "conv_out:float32", f"y:{codes}")
    return [dequantize, op("conv", "Conv", "values:float32", "conv_out:float32"), quantize]


@pytest.mark.parametrize(
    ("ops", "expected"),
    [
        ([], {CODES, BIAS}),
        (IN_INTEGERS, set()),
        (in_float("int8"), {CODES, BIAS}),
        # The runtime made uint8 of them itself: they are not why it is float.
        (in_float("uint8"), {BIAS}),
        ([op("conv", "Conv", "x:float32", "conv_out:float32")], {CODES, BIAS}),
        ([op("other", "QLinearConv", "a:uint8", "b:uint8")], {CODES, BIAS}),
        ([op("", "QLinearConv", "x:uint8", "output/q_out:uint8")], set()),
    ],
    ids=["no plan", "integers", "int8", "uint8", "codes not told", "layer not told", "integers without a name"],
)
def test_codes_and_a_float_bias_are_blamed_where_the_layer_is_float(
    tmp_path: Path, ops: list[ExecutedOp], expected: set[tuple[str, str]]
) -> None:
    assert left(int8_conv(tmp_path / "model.onnx"), "onnxruntime", ops) == expected


@pytest.mark.parametrize(
    ("reads", "makes", "expected"),
    [("int8", "int8", {CODES, BIAS}), ("uint8", "int8", {CODES, BIAS}), ("uint8", "uint8", {BIAS})],
    ids=["int8", "makes int8", "uint8"],
)
def test_a_layer_known_by_the_activation_that_it_took_in_is_float_too(
    tmp_path: Path, reads: str, makes: str, expected: set[tuple[str, str]]
) -> None:
    file = QdqFile()
    bias = file.store("bias", np.ones(CHANNELS, np.float32))
    y = file.op("Relu", file.conv(file.qdq("x", "input"), "conv", bias=bias), name="relu")
    path = file.save(tmp_path / "model.onnx", file.qdq(y, "output", zero=-128))
    ops = [
        op("input/dq", "DequantizeLinear", f"x:{reads}", "values:float32"),
        ExecutedOp("weight", "DequantizeLinear", (), (OpTensor("weight", "float32", None),)),
        op("fused", "FusedConv", "values:float32 weight:float32", "relu_out:float32"),
        op("output/q", "QuantizeLinear", "relu_out:float32", f"y:{makes}"),
    ]
    assert left(path, "onnxruntime", ops) == expected
    assert left(path, "onnxruntime", IN_INTEGERS) == set()


def with_float_bias_for_openvino() -> Target:
    """OpenVINO's own target says nothing of biases."""
    return replace(get_target("openvino"), name="own", constraints=(Derived(("conv",)),))


@pytest.mark.parametrize(
    ("ops", "is_left"),
    [
        ([op("conv", "Convolution", "x:uint8", "y:uint8", "conv")], False),
        ([op("conv", "Convolution", "x:float32", "y:float32", "conv")], True),
        ([op("another", "Convolution", "x:uint8", "y:uint8", "another")], True),
    ],
    ids=["integers", "float", "not told"],
)
def test_what_openvino_does_not_tell_of_is_not_in_integers(
    tmp_path: Path, ops: list[ExecutedOp], is_left: bool
) -> None:
    found = left(int8_conv(tmp_path / "model.onnx"), with_float_bias_for_openvino(), ops)
    assert (BIAS in found) is is_left


@pytest.mark.parametrize("is_turned", [False, True], ids=["as written", "turned"])
def test_codes_of_all_quantizers_around_a_layer_count_in_any_order(tmp_path: Path, is_turned: bool) -> None:
    dequantize, conv, _ = in_float("uint8")
    both = [op(f"{codes}/q", "QuantizeLinear", "conv_out:float32", f"{codes}:{codes}") for codes in ("int8", "uint8")]
    ops = [dequantize, conv, *(both[::-1] if is_turned else both)]
    assert codes_around(ops)[conv] == {"int8", "uint8"}
    assert left(int8_conv(tmp_path / "model.onnx"), "onnxruntime", ops) == {CODES, BIAS}


@pytest.mark.parametrize("is_turned", [False, True], ids=["as written", "turned"])
def test_codes_of_all_dequantizers_of_one_tensor_count_in_any_order(is_turned: bool) -> None:
    """What a function writes out of itself has no name, and so several may have one."""
    both = [op(f"{codes}/dq", "DequantizeLinear", f"{codes}:{codes}", ":float32") for codes in ("int8", "uint8")]
    conv = op("conv", "Conv", ":float32", "conv_out:float32")
    assert codes_around([*(both[::-1] if is_turned else both), conv])[conv] == {"int8", "uint8"}


def test_a_name_that_onnxruntime_gives_is_tried_as_it_is_first(tmp_path: Path) -> None:
    """A file that it optimized before it was quantized has nodes of such names."""
    file = QdqFile()
    y = file.conv(file.qdq("x", "input"), "conv/MatMulAddFusion")
    y = file.conv(file.qdq(y, "middle"), "conv")
    case = Case(OnnxFile.read(file.save(tmp_path / "model.onnx", y)), get_target("onnxruntime"))
    for given, expected in (
        ("conv", "conv"),
        ("conv_nchwc", "conv"),
        ("conv/MatMulAddFusion", "conv/MatMulAddFusion"),
    ):
        assert name_of(node_of(case, op(given, "QLinearConv", "a:uint8", "b:uint8"))) == expected


def test_an_integer_bias_that_the_target_does_not_take_stays_told(tmp_path: Path) -> None:
    file = QdqFile()
    path = file.save(tmp_path / "model.onnx", file.conv(file.qdq("x", "input"), "conv", bias=file.bias("bias")))
    plan = [op("conv", "correlation", "x:int8", "y:float32", "conv")]
    assert left(path, "tensorrt", plan) == {("bias-type", "bias/dq")}


def depthwise(path: Path) -> Path:
    """As NNCF quantizes it: a scale for each channel of what it reads."""
    file = QdqFile()
    ends = file.store("scales", np.full(CHANNELS, 0.1, np.float32)), file.store("zeros", np.zeros(CHANNELS, np.int8))
    codes = file.op("QuantizeLinear", "x", *ends, name="several/q", axis=1)
    x = file.op("DequantizeLinear", codes, *ends, name="several/dq", axis=1)
    weight = file.weight("w", shape=(CHANNELS, 1, 3, 3))
    y = file.op("Conv", x, weight, name="conv", group=CHANNELS, pads=[1, 1, 1, 1])
    return file.save(path, file.op("Relu", y, name="relu"))


@pytest.mark.parametrize(
    ("ops", "is_left"),
    [
        ([], True),
        ([op("conv", "Convolution", "x:uint8", "y:uint8", "conv")], False),
        ([op("conv", "Convolution", "x:bfloat16", "y:uint8", "conv")], True),
        ([op("another", "Convolution", "x:uint8", "y:uint8", "another")], True),
    ],
    ids=["no plan", "integers", "float", "not told"],
)
def test_several_scales_are_right_where_the_runtime_computes_with_them(
    tmp_path: Path, ops: list[ExecutedOp], is_left: bool
) -> None:
    found = left(depthwise(tmp_path / "model.onnx"), "openvino", ops)
    assert found == ({("activation-axis", "several/q")} if is_left else set())


def test_several_scales_for_what_is_no_layer_stay_told(tmp_path: Path) -> None:
    path = depthwise(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Sin", ["several/dq_out"], ["sin_out"], name="sin"))
    onnx.save(model, path)
    ops = [op("conv", "Convolution", "x:uint8", "y:uint8", "conv")]
    assert ("activation-axis", "several/q") in left(path, "openvino", ops)


def half_quantized_add(path: Path, op_type: str) -> Path:
    file = QdqFile()
    y = file.op(op_type, file.qdq("x", "input"), "x", name="both")
    return file.save(path, file.op("Sin", y, name="sin"))


@pytest.mark.parametrize(
    ("op_type", "read", "is_left"),
    [
        ("Add", "input/q:int8 x:float32", False),
        ("Add", "input/q:float32 x:float32", True),
        ("MatMul", "input/q:int8 x:float32", True),
    ],
    ids=["one kernel", "converted before", "product"],
)
def test_openvino_adds_codes_and_floats_in_one_kernel(tmp_path: Path, op_type: str, read: str, is_left: bool) -> None:
    path = half_quantized_add(tmp_path / "model.onnx", op_type)
    found = left(path, "openvino", [op("both", "Subgraph", read, "y:float32", "both")])
    assert (("mixed-operands", "both") in found) is is_left


def test_onnxruntime_converts_what_it_adds(tmp_path: Path) -> None:
    path = half_quantized_add(tmp_path / "model.onnx", "Add")
    ops = [op("both", "Add", "input/q:int8 x:float32", "y:float32")]
    assert ("mixed-operands", "both") in left(path, "onnxruntime", ops)


@pytest.mark.parametrize(
    ("plan", "is_left"),
    [
        ([op("conv", "QLinearConv", "x:uint8", "y:uint8")], False),
        ([op("conv", "Conv", "x:float32", "y:float32")], True),
        (
            [
                op("output/q", "QuantizeLinear", "x:float32", "y:uint8"),
                op("input/dq", "DequantizeLinear", "x:uint8", "y:float32"),
            ],
            True,
        ),
    ],
    ids=["integers", "float", "quantizers alone"],
)
def test_a_pair_that_integers_are_computed_with_is_not_lone_for_any_target(
    tmp_path: Path, plan: list[ExecutedOp], is_left: bool
) -> None:
    """The target with ranges measured as it runs plans for no integer convolution, and ONNX Runtime has one."""
    found = left(int8_conv(tmp_path / "model.onnx"), "dynamic", plan)
    assert (("lone-quantizer", "input/q") in found) is is_left


def test_what_the_plan_tells_of_a_node_is_told_once(tmp_path: Path) -> None:
    file = QdqFile()
    y = file.op("Softmax", file.qdq(file.op("Sin", "x", name="sin"), "lone"), name="softmax")
    path = file.save(tmp_path / "model.onnx", file.conv(file.qdq(y, "input"), "conv"))
    conv = op("conv", "Convolution", "x:uint8", "y:float32", "conv")
    assert ("lone-quantizer", "lone/q") in left(path, "openvino", [conv])
    alone = op("lone/q", "Subgraph", "sin:float32", "y:float32", "lone/q", "lone/dq")
    assert ("lone-quantizer", "lone/q") not in left(path, "openvino", [conv, alone])
