"""What the rules of a file say, and where they say nothing; no runtime is asked here."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.file_findings import findings, told
from support.qdq_files import CHANNELS, QdqFile, residual_block

from fxq.verification.finding import ERROR, NOTE, WARNING

WEIGHT = np.full((CHANNELS, CHANNELS, 3, 3), 0.1, np.float32)
Build = Callable[[QdqFile], str]


def uint8_conv(file: QdqFile, bias: str | None = None) -> str:
    """As ONNX Runtime wants it: unsigned codes, output quantized behind the activation."""
    x = file.qdq("x", "input", np.uint8, 128)
    return file.op("Relu", file.conv(x, "conv", bias=bias or file.bias("bias")), name="relu")


def test_what_tensorrt_fuses_breaks_no_rule(tmp_path: Path) -> None:
    assert told(residual_block(tmp_path / "model.onnx"), "tensorrt") == set()


def test_what_onnxruntime_fuses_breaks_no_rule(tmp_path: Path) -> None:
    file = QdqFile()
    y = file.qdq(uint8_conv(file), "output", np.uint8)
    assert told(file.save(tmp_path / "model.onnx", y), "onnxruntime") == set()


def test_a_float_residual_is_named_with_the_convolution_that_absorbs_the_add(tmp_path: Path) -> None:
    (finding,) = findings(residual_block(tmp_path / "model.onnx", on_skip=False), "tensorrt")
    assert (finding.severity, finding.rule, finding.node) == (WARNING, "residual-quantizer", "add")
    assert "absorbed by the convolution 'conv2'" in finding.what
    assert "'x'" in finding.fix
    assert "four times the memory traffic" in finding.cost


def test_a_quantizer_between_convolution_and_add_is_named(tmp_path: Path) -> None:
    path = residual_block(tmp_path / "model.onnx", on_branch=True)
    assert told(path, "tensorrt") == {(WARNING, "quantizer-before-add", "add")}
    # OpenVINO wants both inputs of an add quantized.
    assert told(path, "openvino") == set()


def test_an_add_without_a_convolution_before_it_is_no_residual_add(tmp_path: Path) -> None:
    file = QdqFile()
    y = file.op("Relu", file.conv(file.qdq("x", "input"), "conv"), name="relu")
    read_twice = file.op("Add", y, file.op("Sin", "x", name="sin"), name="add")
    file.op("Cos", y, name="cos")  # the convolution's output is stored anyway
    assert told(file.save(tmp_path / "model.onnx", read_twice), "tensorrt") == set()


def test_a_residual_behind_silu_is_found(tmp_path: Path) -> None:
    file = QdqFile()
    y = file.conv(file.qdq("x", "input"), "conv")
    y = file.op("Mul", y, file.op("Sigmoid", y, name="sigmoid"), name="mul")
    path = file.save(tmp_path / "model.onnx", file.op("Add", y, "x", name="add"))
    assert told(path, "tensorrt") == {(WARNING, "residual-quantizer", "add")}


def before_relu(file: QdqFile) -> str:
    y = file.qdq(file.conv(file.qdq("x", "input"), "conv"), "early")
    return file.conv(file.qdq(file.op("Relu", y, name="relu"), "late"), "conv2")


def float_weight(file: QdqFile) -> str:
    weight = file.store("weight", np.ones((CHANNELS, CHANNELS, 3, 3), np.float32))
    return file.conv(file.qdq("x", "input"), "conv", weight)


def float_input(file: QdqFile) -> str:
    return file.conv("x", "conv")


def float_layer(file: QdqFile) -> str:
    weight = file.store("weight", np.ones((CHANNELS, CHANNELS, 3, 3), np.float32))
    return file.conv(file.conv(file.qdq("x", "input"), "conv1"), "conv2", weight)


def lone_pair(file: QdqFile) -> str:
    y = file.conv(file.qdq("x", "input"), "conv")
    return file.op("Softmax", file.qdq(file.op("Sin", y, name="sin"), "lone"), name="softmax")


def affine(file: QdqFile) -> str:
    return file.conv(file.qdq("x", "input", zero=3), "conv")


def unsigned(file: QdqFile) -> str:
    return file.conv(file.qdq("x", "input", np.uint8), "conv")


def scales_of_an_activation(file: QdqFile) -> str:
    scale = file.store("scale", np.full(CHANNELS, 0.1, np.float32))
    zero = file.store("zero", np.zeros(CHANNELS, np.int8))
    codes = file.op("QuantizeLinear", "x", scale, zero, name="several/q", axis=1)
    return file.conv(file.op("DequantizeLinear", codes, scale, zero, name="several/dq", axis=1), "conv")


def wrong_axis(file: QdqFile) -> str:
    return file.conv(file.qdq("x", "input"), "conv", file.weight("weight", axis=1))


def integer_bias(file: QdqFile) -> str:
    return file.conv(file.qdq("x", "input"), "conv", bias=file.bias("bias"))


def quantized_output(file: QdqFile) -> str:
    return file.qdq(file.conv(file.qdq("x", "input"), "conv"), "last")


def sequence(file: QdqFile) -> str:
    y = file.conv(file.qdq("x", "input"), "conv")
    parts = file.op("SequenceConstruct", y, y, name="sequence")
    return file.op("ConcatFromSequence", parts, name="join", axis=0)


def unequal_concat(file: QdqFile) -> str:
    x, y = file.qdq("x", "a"), file.qdq("x", "b", scale=0.5)
    return file.conv(file.op("Concat", x, y, name="cat", axis=2), "conv")


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (before_relu, (WARNING, "quantizer-before-activation", "early/q")),
        (float_weight, (WARNING, "half-quantized", "conv")),
        (float_input, (WARNING, "half-quantized", "conv")),
        (float_layer, (NOTE, "float-layer", "conv2")),
        (lone_pair, (WARNING, "lone-quantizer", "lone/q")),
        (affine, (ERROR, "zero-point", "input/q")),
        (unsigned, (ERROR, "activation-type", "input/q")),
        (scales_of_an_activation, (WARNING, "activation-axis", "several/q")),
        (wrong_axis, (ERROR, "weight-axis", "weight/dq")),
        (integer_bias, (ERROR, "bias-type", "bias/dq")),
        (quantized_output, (WARNING, "quantized-output", "last/dq")),
        (unequal_concat, (WARNING, "equal-ranges", "cat")),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_each_rule_of_tensorrt_names_its_node(tmp_path: Path, build: Build, expected: tuple[str, str, str]) -> None:
    file = QdqFile()
    path = file.save(tmp_path / "model.onnx", build(file))
    assert expected in told(path, "tensorrt")
    rules = [finding for finding in findings(path, "tensorrt") if finding.is_broken]
    assert {finding.rule for finding in rules} <= {expected[1], "repeated-quantizer"}


def test_sequences_are_refused(tmp_path: Path) -> None:
    file = QdqFile()
    path = file.save(tmp_path / "model.onnx", sequence(file))
    assert told(path, "tensorrt") == {(ERROR, "operator", "sequence"), (ERROR, "operator", "join")}
    assert not [one for one in told(path, "openvino") if one[1] == "operator"]


def test_every_operator_on_codes_is_refused(tmp_path: Path) -> None:
    """Those of ONNX Runtime are many, and more come with its versions."""
    file, of_ort = QdqFile(), {"domain": "com.microsoft"}
    ends = file.store("scale", np.array(0.05, np.float32)), file.store("zero", np.array(0, np.int8))
    codes = file.op("QuantizeLinear", "x", *ends, name="q")
    codes = file.op("QLinearReduceMean", codes, *ends, *ends, name="mean", axes=[2, 3], keepdims=1, **of_ort)
    codes = file.op("QLinearSoftmax", codes, *ends, *ends, name="softmax", axis=1, opset=18, **of_ort)
    path = file.save(tmp_path / "model.onnx", file.op("DequantizeLinear", codes, *ends, name="dq"))
    model = onnx.load(path)
    model.opset_import.add(domain="com.microsoft", version=1)
    onnx.save(model, path)
    refused = {one for one in told(path, "tensorrt") if one[1] == "operator"}
    assert refused == {(ERROR, "operator", "mean"), (ERROR, "operator", "softmax")}
    assert not [one for one in told(path, "onnxruntime") if one[1] == "operator"]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda file: file.conv(file.qdq("x", "input", np.uint8, 128), "conv"), (WARNING, "output-quantizer", "conv")),
        (lambda file: file.qdq(uint8_conv(file), "output", np.uint8, 100), (WARNING, "activation-clamp", "relu")),
        (
            lambda file: file.qdq(uint8_conv(file, file.bias("bias", scale=0.2)), "output", np.uint8),
            (ERROR, "bias-scale", "conv"),
        ),
        (
            lambda file: file.op("Add", file.qdq("x", "input", np.uint8), "x", name="add"),
            (WARNING, "mixed-operands", "add"),
        ),
        (affine, (WARNING, "activation-codes", "conv")),
    ],
    ids=["output", "clamp", "bias", "operands", "signed codes"],
)
def test_each_rule_of_onnxruntime_names_its_node(tmp_path: Path, build: Build, expected: tuple[str, str, str]) -> None:
    file = QdqFile()
    path = file.save(tmp_path / "model.onnx", build(file))
    assert expected in told(path, "onnxruntime")


def test_a_batch_norm_in_front_of_the_quantizer_is_to_be_folded(tmp_path: Path) -> None:
    file = QdqFile()
    parts = [file.store(f"part{at}", np.ones(CHANNELS, np.float32)) for at in range(4)]
    y = file.conv(file.qdq("x", "input", np.uint8, 128), "conv")
    y = file.qdq(file.op("BatchNormalization", y, *parts, name="bn"), "output", np.uint8, 128)
    (finding,) = findings(file.save(tmp_path / "model.onnx", y), "onnxruntime")
    assert (finding.rule, finding.node) == ("output-quantizer", "conv")
    assert finding.fix.startswith("fold its batch norm into it before the model is quantized, and quantize its output")


def test_what_openvinos_own_operator_quantizes_is_quantized(tmp_path: Path) -> None:
    """nncf.strip leaves one of those that it makes for two tensors."""
    file = QdqFile()
    ends = [file.store(f"end{at}", np.array(value, np.float32)) for at, value in enumerate((-1, 1, -1, 1))]
    x = file.op("FakeQuantize", "x", *ends, name="fake", domain="org.openvinotoolkit", levels=256)
    y = file.conv(file.op("Concat", x, file.qdq("x", "input"), name="cat", axis=2), "conv")
    path = file.save(tmp_path / "model.onnx", y)
    model = onnx.load(path)
    model.opset_import.add(domain="org.openvinotoolkit", version=1)
    onnx.save(model, path)
    assert told(path, "openvino") == set()
    assert told(path, "tensorrt") == set()


def test_products_of_int8_are_as_fast_as_others(tmp_path: Path) -> None:
    file = QdqFile()
    y = file.op("MatMul", file.qdq("x", "input"), file.weight("w", axis=1, shape=(8, 8)), name="product")
    assert told(file.save(tmp_path / "model.onnx", y), "onnxruntime") == set()


def test_a_float_bias_is_noted_where_the_target_adds_integers(tmp_path: Path) -> None:
    file = QdqFile()
    bias = file.store("bias", np.ones(CHANNELS, np.float32))
    path = file.save(tmp_path / "model.onnx", file.qdq(uint8_conv(file, bias), "output", np.uint8))
    assert told(path, "onnxruntime") == {(NOTE, "bias-type", "conv")}
    file = QdqFile()
    none = file.store("bias", np.zeros(CHANNELS, np.float32))
    path = file.save(tmp_path / "without.onnx", file.qdq(uint8_conv(file, none), "output", np.uint8))
    assert told(path, "onnxruntime") == set()


def test_weights_quantized_in_the_file_as_pytorch_quantization_writes_them_are_integers(tmp_path: Path) -> None:
    file = QdqFile()
    weight = file.store("weight", np.ones((CHANNELS, CHANNELS, 3, 3), np.float32))
    scale = file.store("w.scale", np.full(CHANNELS, 0.01, np.float32))
    zero = file.store("w.zero", np.zeros(CHANNELS, np.int8))
    codes = file.op("QuantizeLinear", weight, scale, zero, name="w/q", axis=0)
    weight = file.op("DequantizeLinear", codes, scale, zero, name="w/dq", axis=0)
    path = file.save(tmp_path / "model.onnx", file.conv(file.qdq("x", "input"), "conv", weight))
    assert told(path, "tensorrt") == set()


def test_one_tensor_with_two_ranges_is_noted(tmp_path: Path) -> None:
    file = QdqFile()
    y = file.conv(file.qdq("x", "a"), "conv1")
    z = file.conv(file.qdq("x", "b", scale=0.5), "conv2")
    path = file.save(tmp_path / "model.onnx", file.op("Sub", y, z, name="sub"))
    assert told(path, "tensorrt") == {(NOTE, "repeated-quantizer", "b/q")}


def test_a_pair_with_a_zero_point_is_told_once(tmp_path: Path) -> None:
    file = QdqFile()
    path = file.save(tmp_path / "model.onnx", affine(file))
    assert [finding.node for finding in findings(path, "tensorrt")] == ["input/q"]


def test_an_integer_convolution_absorbs_the_add_behind_it_where_it_writes_float(tmp_path: Path) -> None:
    """As ModelOpt writes it: the skip connection is quantized, and the convolution's output is not."""

    def block(name: str, is_read_again: bool = False, is_integer: bool = True) -> Path:
        file = QdqFile()
        x = file.qdq("x", "input", np.uint8, 128)
        y = file.conv(x if is_integer else "x", "conv", None if is_integer else file.store("w", WEIGHT))
        z = file.op("Add", y, x, name="add")
        return file.save(tmp_path / f"{name}.onnx", file.op("Max", z, y, name="max") if is_read_again else z)

    mixed = (WARNING, "mixed-operands", "add")
    assert mixed not in told(block("absorbed"), "openvino")
    assert mixed in told(block("absorbed"), "onnxruntime")  # its integer add reads integers
    assert mixed in told(block("read again", is_read_again=True), "openvino")
    assert mixed in told(block("float", is_integer=False), "openvino")


def test_a_concatenation_is_integers_where_all_its_operands_are(tmp_path: Path) -> None:
    file = QdqFile()
    x = file.qdq("x", "input")
    path = file.save(tmp_path / "model.onnx", file.conv(file.op("Concat", x, x, name="cat", axis=2), "conv"))
    assert told(path, "tensorrt") == set()
    file = QdqFile()
    half = file.op("Concat", file.qdq("x", "input"), "x", name="cat", axis=2)
    path = file.save(tmp_path / "half.onnx", file.conv(half, "conv"))
    assert (WARNING, "half-quantized", "conv") in told(path, "tensorrt")


def test_codes_that_another_layer_needs_are_no_fault_of_a_float_layer(tmp_path: Path) -> None:
    file = QdqFile()
    codes = file.qdq("x", "input")
    weight = file.store("weight", np.ones((CHANNELS, CHANNELS, 3, 3), np.float32))
    both = file.op("Add", file.conv(codes, "integer"), file.conv(codes, "float", weight), name="sum")
    assert (NOTE, "float-layer", "float") in told(file.save(tmp_path / "model.onnx", both), "tensorrt")


def test_codes_that_a_kernel_has_to_write_are_no_fault_of_the_float_layer_behind(tmp_path: Path) -> None:
    file = QdqFile()
    codes = file.qdq(file.conv(file.qdq("x", "input"), "conv"), "between")
    weight = file.store("weight", np.ones((CHANNELS, CHANNELS, 3, 3), np.float32))
    moved = file.op("Transpose", codes, name="moved", perm=[0, 1, 3, 2])
    path = file.save(tmp_path / "model.onnx", file.conv(file.qdq(moved, "moved"), "last", weight))
    assert (NOTE, "float-layer", "last") in told(path, "onnxruntime")
    assert (WARNING, "half-quantized", "last") in told(path, "tensorrt")  # whose convolutions write floats as well
