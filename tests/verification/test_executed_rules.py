"""What is said about the operations that a runtime executes; their lists are written by hand here."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.qdq_files import CHANNELS, SIZE, QdqFile, residual_block

from fxq.registry import get_target
from fxq.runtimes import ExecutedOp, OpTensor
from fxq.verification.case import Case
from fxq.verification.executed_rules import EXECUTED_RULES
from fxq.verification.finding import NOTE, WARNING, Finding
from fxq.verification.onnx_file import OnnxFile

SHAPE = (1, 4, 8, 8)


def tensor(name: str, dtype: str) -> OpTensor:
    return OpTensor(name, dtype, SHAPE)


def op(name: str, kind: str, inputs: str, output: str, *fused: str) -> ExecutedOp:
    """``inputs`` and ``output`` are dtypes, such as "int8 float32"; a tensor may be named before a colon."""

    def tensors(text: str, side: str) -> tuple[OpTensor, ...]:
        parts = [part.rpartition(":") for part in text.split()]
        return tuple(tensor(own or f"{name}_{side}{i}", dtype) for i, (own, _, dtype) in enumerate(parts))

    return ExecutedOp(name, kind, tensors(inputs, "in"), tensors(output, "out"), fused)


def findings(path: Path, target: str, ops: list[ExecutedOp]) -> list[Finding]:
    case = Case(OnnxFile.read(path), get_target(target))
    return list(EXECUTED_RULES[case.target.file.runtime](case, ops))


def told(path: Path, target: str, ops: list[ExecutedOp]) -> set[tuple[str, str, str]]:
    return {(finding.severity, finding.rule, finding.node) for finding in findings(path, target, ops)}


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return residual_block(tmp_path_factory.mktemp("block") / "model.onnx")


GOOD = op("k1", "correlation", "int8", "int8", "conv1", "relu1")
SCALES = op("k3", "kgen", "float32", "float32", "conv1", "conv2")


def test_kernels_that_read_integers_are_right_whatever_scales_behind_them(block: Path) -> None:
    assert (
        told(block, "tensorrt", [GOOD, op("k2", "correlation", "int8 int8", "int8", "conv2", "add"), SCALES]) == set()
    )


def test_a_skip_that_travels_as_float_shows_in_the_kernel(block: Path) -> None:
    (finding,) = findings(
        block, "tensorrt", [GOOD, op("k2", "correlation", "int8 float32", "float32", "conv2", "add"), SCALES]
    )
    assert (finding.severity, finding.rule, finding.node) == (WARNING, "float-residual", "conv2")
    assert "float32 1x4x8x8" in finding.what


@pytest.mark.parametrize(
    ("read", "is_right"), [("int8 int8 int8 bool", True), ("bool", False), ("float32 bool", False)]
)
def test_a_mask_is_no_operand(block: Path, read: str, is_right: bool) -> None:
    found = told(block, "tensorrt", [GOOD, op("attention", "kgen", read, "int8", "conv2"), SCALES])
    assert (not found) is is_right


@pytest.mark.parametrize("kind", ["runtime_fusion", "kgen"])
def test_a_kernel_that_converts_codes_and_computes_in_float_is_named(block: Path, kind: str) -> None:
    slow = op("k2", kind, "int8 float32", "float32", "conv2")
    (finding,) = findings(block, "tensorrt", [GOOD, SCALES, slow])
    assert (finding.rule, finding.node) == ("float-kernel", "conv2")
    assert f"'k2' ({kind})" in finding.what


@pytest.mark.parametrize("kind", ["correlation", "deconv", "gemm", "runtime_fusion"])
def test_a_product_in_float_is_named_though_a_kernel_before_it_reads_codes(block: Path, kind: str) -> None:
    moved, slow = op("k2", "kgen", "int8", "float32", "conv2"), op("k4", kind, "float32", "float32", "conv2")
    (finding,) = findings(block, "tensorrt", [GOOD, moved, slow, SCALES])
    assert (finding.rule, finding.node) == ("float-kernel", "conv2")
    assert f"'k4' ({kind})" in finding.what


@pytest.mark.parametrize(
    ("name", "is_right"), [("__myl_ReluMulMinMaxRounCastCorrMulAdd_myl0_3", True), ("__myl_RounCastCastMulCorr", False)]
)
def test_a_small_kernel_may_round_what_it_multiplies(block: Path, name: str, is_right: bool) -> None:
    whole = op(name, "kgen", "float32", "float32", "conv2")
    assert (told(block, "tensorrt", [GOOD, whole]) == set()) is is_right


def test_a_layer_that_no_kernel_tells_of_is_noted(block: Path) -> None:
    assert told(block, "tensorrt", [GOOD]) == {(NOTE, "unknown-kernel", "conv2")}
    assert told(block, "openvino", [op("conv1", "Convolution", "uint8", "uint8")]) == {
        (NOTE, "unknown-kernel", "conv2")
    }


def test_openvinos_layers_are_known_by_what_was_fused_into_them(block: Path) -> None:
    first = op("conv1/WithoutBiases", "Convolution", "uint8", "uint8", "conv1/WithoutBiases", "middle/q")
    last = op("conv2", "Convolution", "uint8", "bfloat16", "conv2", "add")
    assert told(block, "openvino", [first, last]) == set()
    in_float = op("other", "Subgraph", "bfloat16", "bfloat16", "conv2", "add")
    alone = op("middle/dq", "Subgraph", "bfloat16", "bfloat16", "middle/q", "Convert_1", "middle/dq")
    assert told(block, "openvino", [first, alone, in_float]) == {
        (WARNING, "float-kernel", "conv2"),
        (WARNING, "lone-quantizer", "middle/q"),
    }
    # Part of a layer that it renamed otherwise, it costs nothing.
    part = op("middle", "FullyConnected", "bfloat16", "bfloat16", "middle/q")
    assert told(block, "openvino", [first, part, last]) == set()
    # At the border to integers a quantizer has to run somewhere.
    border = op("middle/q", "FakeQuantize", "float32", "uint8", "middle/q")
    assert told(block, "openvino", [first, border, last]) == set()


def test_openvino_calls_the_last_layer_by_the_output_that_it_writes(tmp_path: Path) -> None:
    file = QdqFile()
    path = file.save(tmp_path / "model.onnx", file.conv(file.qdq("x", "input"), "conv"))
    assert told(path, "openvino", [op("conv_out", "Convolution", "uint8", "float32", "conv_out")]) == set()


def test_openvino_calls_a_layer_by_the_batch_norm_that_it_took_in(tmp_path: Path) -> None:
    file = QdqFile()
    parts = [file.store(f"part{at}", np.ones(CHANNELS, np.float32)) for at in range(4)]
    y = file.op("BatchNormalization", file.conv(file.qdq("x", "input"), "conv"), *parts, name="bn")
    path = file.save(tmp_path / "model.onnx", file.op("Relu", y, name="relu"))
    assert told(path, "openvino", [op("Multiply_7", "Convolution", "uint8", "uint8", "Multiply_7", "bn")]) == set()
    in_float = [op("Multiply_7", "Convolution", "bfloat16", "uint8", "Multiply_7", "bn")]
    assert told(path, "openvino", in_float) == {(WARNING, "float-kernel", "conv")}
    # What only stands behind it is no part of it.
    assert told(path, "openvino", [op("relu", "Eltwise", "uint8", "uint8", "relu")]) == {
        (NOTE, "unknown-kernel", "conv")
    }


def test_openvino_tells_no_product_in_an_attention_and_its_codes_do(tmp_path: Path) -> None:
    file = QdqFile()
    product = file.op("MatMul", file.qdq("x", "queries"), file.qdq("x", "keys"), name="product")
    path = file.save(tmp_path / "model.onnx", file.op("Softmax", product, name="softmax"))
    writer = op("rounded", "Subgraph", "float32", "rounded:int8", "keys/q")
    attention = op("softmax", "Subgraph", "queries/q:int8 rounded:int8 mask:float32", "float32", "softmax")
    assert told(path, "openvino", [writer, attention]) == set()
    half = op("softmax", "Subgraph", "queries/q:int8 rounded:bfloat16", "float32", "softmax")
    assert told(path, "openvino", [writer, half]) == {(NOTE, "unknown-kernel", "product")}


def uint8_conv(file: QdqFile, codes: tuple[type, int] = (np.uint8, 128), scales: tuple[int, ...] = ()) -> str:
    """x -> Q/DQ -> conv -> relu -> Q/DQ; a number of scales on the way in."""
    x = file.qdq("x", "input", *codes)
    if scales:
        file.stored |= {"input.scale": np.full(scales, 0.1, np.float32), "input.zero_point": np.zeros(scales, np.uint8)}
        for node in file.nodes:
            node.attribute.append(onnx.helper.make_attribute("axis", 1))
    y = file.op("Relu", file.conv(x, "conv", bias=file.bias("bias")), name="relu")
    return file.qdq(y, "output", *codes)


def around(reads: str, makes: str, kind: str = "FusedConv") -> list[ExecutedOp]:
    """A float convolution that reads and writes such codes."""
    return [
        op("input/dq", "DequantizeLinear", reads, "values:float32"),
        op("weight", "DequantizeLinear", "", "weight:float32"),
        op("conv", kind, "values:float32 weight:float32", "relu_out:float32"),
        op("output/q", "QuantizeLinear", "relu_out:float32", makes),
    ]


@pytest.mark.parametrize(
    ("build", "ops", "fix"),
    [
        # It makes uint8 codes of int8 itself, where one operation reads them.
        (lambda file: uint8_conv(file, (np.int8, 0)), around("int8", "uint8"), "activations to uint8"),
        (lambda file: uint8_conv(file, (np.int8, 0)), around("uint8", "int8"), "activations to uint8"),
        (lambda file: uint8_conv(file, (np.int8, 0)), around("uint8", "uint8"), "lowest code is 0.0"),
        (lambda file: uint8_conv(file, (np.uint8, 0)), around("uint8", "uint8"), "quantize its output too"),
        (lambda file: uint8_conv(file, scales=(CHANNELS,)), around("uint8", "uint8"), "one scale each"),
        # A kernel for it writes codes, of whatever type they are.
        (lambda file: file.conv(file.qdq("x", "input"), "conv"), around("int8", "int8")[:3], "quantize its output too"),
    ],
    ids=["reads int8", "makes int8", "clamp", "else", "scales", "float output"],
)
def test_the_fix_of_a_float_convolution_is_that_of_its_reason(
    tmp_path: Path, build: Callable[[QdqFile], str], ops: list[ExecutedOp], fix: str
) -> None:
    file = QdqFile()
    path = file.save(tmp_path / "model.onnx", build(file))
    (finding,) = [one for one in findings(path, "onnxruntime", ops) if one.rule == "float-kernel"]
    assert finding.node == "conv"
    assert fix in finding.fix


def test_a_float_product_wants_a_bias_or_an_output_in_integers_whatever_its_codes(tmp_path: Path) -> None:
    file = QdqFile()
    x = file.qdq("x", "input")
    y = file.op("MatMul", x, file.weight("w", axis=1, shape=(SIZE, SIZE)), name="product")
    path = file.save(tmp_path / "model.onnx", file.op("Add", y, file.store("b", np.ones(SIZE, np.float32)), name="add"))
    ops = [*around("int8", "uint8")[:2], op("product/MatMulAddFusion", "Gemm", "values:float32 weight:float32", "y")]
    (finding,) = findings(path, "onnxruntime", ops)
    assert (finding.rule, finding.node) == ("float-kernel", "product")
    assert "bias as int32" in finding.fix


def test_scales_in_16_bits_keep_all_in_float(tmp_path: Path) -> None:
    file = QdqFile(opset=19)
    half = file.op("Cast", "x", name="half", to=onnx.TensorProto.FLOAT16)
    y = file.qdq(file.conv(file.qdq(half, "input", np.uint8, 128), "conv"), "output", np.uint8, 128)
    y = file.op("Cast", y, name="float", to=onnx.TensorProto.FLOAT)
    halves = {name: value.astype(np.float16) for name, value in file.stored.items() if value.dtype == np.float32}
    file.stored |= halves
    path = file.save(tmp_path / "model.onnx", y)
    name = "InsertedPrecisionFreeCast_conv_out"
    ops = [*around("uint8", "uint8")[:2], op("conv", "Conv", "values:float32 weight:float32", f"{name}:float32")]
    cast = op(name, "Cast", f"{name}:float32", "conv_out:float16")
    (finding,) = findings(path, "onnxruntime", [*ops, cast])  # what converts its output is no layer
    assert "in float32" in finding.fix


def test_a_layer_whose_weight_is_float_is_another_rules(tmp_path: Path) -> None:
    file = QdqFile()
    weight = file.store("w", np.ones((CHANNELS, CHANNELS, 3, 3), np.float32))
    y = file.conv(file.qdq("x", "input", np.uint8, 128), "conv", weight)
    path = file.save(tmp_path / "model.onnx", file.op("Relu", y, name="relu"))
    dequantize = op("input/dq", "DequantizeLinear", "uint8", "values:float32")
    fused = op("fused", "FusedConv", "values:float32", "relu_out:float32")
    assert told(path, "onnxruntime", [dequantize, fused]) == set()


def test_onnxruntimes_fused_operations_are_known_by_what_they_read(tmp_path: Path) -> None:
    file = QdqFile()
    y = file.conv(file.qdq("x", "input", np.uint8, 128), "conv", bias=file.bias("bias"))
    path = file.save(tmp_path / "model.onnx", file.op("Relu", y, name="relu"))
    dequantize = op("input/dq", "DequantizeLinear", "uint8", "values:float32")
    weight = op("weight", "DequantizeLinear", "", "weight:float32")
    fused = op("fused", "FusedConv", "values:float32 weight:float32", "relu_out:float32")
    assert told(path, "onnxruntime", [dequantize, weight, fused]) == {(WARNING, "float-kernel", "relu")}
    of_floats = op("fused", "FusedConv", "x:float32 weight:float32", "relu_out:float32")
    assert told(path, "onnxruntime", [weight, of_floats]) == set()
    layouts = op("conv_token_3", "Conv", "values:float32 weight:float32", "conv_out:float32")
    assert told(path, "onnxruntime", [dequantize, weight, layouts]) == {(WARNING, "float-kernel", "conv")}


def between(path: Path, op_type: str) -> Path:
    """Write integers -> op_type -> integers."""
    file = QdqFile()
    x = file.qdq("x", "input", np.uint8)
    operands = (x, file.store("half", np.array(0.5, np.float32))) if op_type == "Mul" else (x,)
    attributes = {"kernel_shape": [1, 1]} if op_type == "MaxPool" else {}
    return file.save(path, file.qdq(file.op(op_type, *operands, name="between", **attributes), "output", np.uint8))


def island(kind: str, *before: ExecutedOp, behind: str = "QuantizeLinear") -> list[ExecutedOp]:
    return [
        *(before or (op("input/dq", "DequantizeLinear", "uint8", "a:float32"),)),
        op("between", kind, "a:float32", "b:float32"),
        op("behind", behind, "b:float32", "c:uint8"),
    ]


def test_a_float_operation_between_integers_is_an_island(tmp_path: Path) -> None:
    path = between(tmp_path / "model.onnx", "Mul")
    (finding,) = findings(path, "onnxruntime", island("Mul"))
    assert (finding.severity, finding.rule, finding.node) == (WARNING, "float-island", "between")
    assert "constants too" in finding.fix
    # What comes from a kernel that gives floats, or is read by one, is no detour.
    gives_floats = op("gemm", "MatMulIntegerToFloat", "x:uint8", "a:float32")
    assert told(path, "onnxruntime", island("Mul", gives_floats)) == set()
    assert told(path, "onnxruntime", island("Mul", behind="DynamicQuantizeMatMul")) == set()
    assert told(path, "onnxruntime", island("Transpose")) == set()


def test_operations_without_names_are_told_apart(tmp_path: Path) -> None:
    """ONNX Runtime writes a HardSwish as two nodes, and gives them none."""
    file = QdqFile()
    y = file.qdq(file.op("HardSwish", file.qdq("x", "a"), name="one"), "b")
    path = file.save(tmp_path / "model.onnx", file.qdq(file.op("HardSwish", y, name="other"), "c"))
    ops = []
    for before, behind in (("a", "b"), ("b", "c")):
        x, gate, y = f"{before}_values", f"{before}_gate", f"{before}_y"
        ops += [
            op(f"{before}/dq", "DequantizeLinear", "uint8", f"{x}:float32"),
            op("", "HardSigmoid", f"{x}:float32", f"{gate}:float32"),
            op("", "Mul", f"{x}:float32 {gate}:float32", f"{y}:float32"),
            op(f"{behind}/q", "QuantizeLinear", f"{y}:float32", "uint8"),
        ]
    found = findings(path, "onnxruntime", ops)
    assert [(one.rule, one.node) for one in found] == [("float-island", "one"), ("float-island", "other")]
    assert found[0].what == "in float between integers: HardSigmoid 'a_gate', Mul 'one'"


def test_what_lays_values_out_for_an_island_is_no_part_of_what_is_told(tmp_path: Path) -> None:
    path = between(tmp_path / "model.onnx", "MaxPool")
    ops = [
        op("input/dq", "DequantizeLinear", "uint8", "a:float32"),
        op("ReorderInput", "ReorderInput", "a:float32", "b:float32"),
        op("between_out_pre_q_nchwc", "MaxPool", "b:float32", "c:float32"),
        op("ReorderOutput", "ReorderOutput", "c:float32", "between_out_pre_q:float32"),
        op("behind", "QuantizeLinear", "between_out_pre_q:float32", "d:uint8"),
    ]
    (finding,) = findings(path, "onnxruntime", ops)
    assert finding.what == "in float between integers: MaxPool 'between'"


def test_an_island_of_what_has_no_integer_form_is_noted(tmp_path: Path) -> None:
    path = between(tmp_path / "model.onnx", "Sin")
    assert told(path, "onnxruntime", island("Sin")) == {(NOTE, "float-island", "between")}
