"""What is said about the operations that a runtime executes; their lists are written by hand here."""

from pathlib import Path

import numpy as np
import pytest
from support.qdq_files import QdqFile, residual_block

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
    return file.save(path, file.qdq(file.op(op_type, *operands, name="between"), "output", np.uint8))


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


def test_an_island_of_what_has_no_integer_form_is_noted(tmp_path: Path) -> None:
    path = between(tmp_path / "model.onnx", "Sin")
    assert told(path, "onnxruntime", island("Sin")) == {(NOTE, "float-island", "between")}
