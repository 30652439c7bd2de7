"""Where a pair of quantizers helps nothing, and what it keeps from fusing into the layer before it."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from support.file_findings import findings, told
from support.qdq_files import CHANNELS, SIZE, QdqFile

from fxq.verification.finding import WARNING

LONE = (WARNING, "lone-quantizer", "early/q")
SPLIT = (WARNING, "quantizer-before-activation", "early/q")
UINT8 = (np.uint8, 128)
INT8 = (np.int8, 0)


def linear(file: QdqFile, codes: tuple[type, int]) -> str:
    """x -> Q/DQ -> a product with a stored matrix -> Q/DQ."""
    weight = file.weight("w", axis=1, shape=(SIZE, SIZE))
    return file.qdq(file.op("MatMul", file.qdq("x", "input", *codes), weight, name="linear"), "early", *codes)


def conv(file: QdqFile, codes: tuple[type, int]) -> str:
    """x -> Q/DQ -> convolution -> Q/DQ."""
    return file.qdq(file.conv(file.qdq("x", "input", *codes), "conv"), "early", *codes)


def softmax(file: QdqFile, x: str) -> str:
    return file.op("Softmax", x, name="behind")


def layer_norm(file: QdqFile, x: str) -> str:
    return file.op("LayerNormalization", x, file.store("gamma", np.ones(SIZE, np.float32)), name="behind")


def batch_norm(file: QdqFile, x: str) -> str:
    parts = [file.store(f"part{at}", np.ones(CHANNELS, np.float32)) for at in range(4)]
    return file.op("BatchNormalization", x, *parts, name="behind")


def prelu(file: QdqFile, x: str) -> str:
    return file.op("PRelu", x, file.store("slope", np.ones((CHANNELS, 1, 1), np.float32)), name="behind")


def elu(file: QdqFile, x: str) -> str:
    return file.op("Elu", x, name="behind")


def mish(file: QdqFile, x: str) -> str:
    return file.op("Mish", x, name="behind")


def gelu(file: QdqFile, x: str) -> str:
    return file.op("Gelu", x, name="behind")


def unknown(file: QdqFile, x: str) -> str:
    return file.op("Sin", x, name="behind")


def sliced(file: QdqFile, x: str) -> str:
    """Multiply slices of it with each other, as attention does its queries and keys."""
    halves = file.store("halves", np.array([SIZE // 2, SIZE // 2]))
    file.nodes.append(helper.make_node("Split", [x, halves], ["queries", "keys"], name="split", axis=3))
    transposed = file.op("Transpose", "keys", name="transpose", perm=[0, 1, 3, 2])
    return file.op("MatMul", "queries", transposed, name="behind")


def sliced_for_softmax(file: QdqFile, x: str) -> str:
    ends = [file.store(name, np.array([at])) for name, at in (("start", 0), ("end", 4), ("axis", 3))]
    return file.op("Softmax", file.op("Slice", x, *ends, name="slice"), name="behind")


@pytest.mark.parametrize(
    ("target", "codes", "behind", "expected"),
    [
        ("tensorrt", INT8, softmax, {LONE}),
        ("tensorrt", INT8, sliced_for_softmax, {LONE}),
        ("tensorrt", INT8, sliced, set()),
        ("tensorrt", INT8, unknown, set()),
        ("onnxruntime", UINT8, softmax, {LONE}),
        ("onnxruntime", UINT8, layer_norm, {LONE}),
        ("onnxruntime", UINT8, sliced, set()),
        ("onnxruntime", UINT8, unknown, set()),
    ],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else ""),
)
def test_a_pair_behind_a_linear_layer_wants_a_reader_that_computes_in_integers(
    tmp_path: Path, target: str, codes: tuple[type, int], behind: object, expected: set
) -> None:
    file = QdqFile()
    path = file.save(tmp_path / "model.onnx", behind(file, linear(file, codes)))
    assert told(path, target) == expected


@pytest.mark.parametrize(
    ("target", "codes", "expected"),
    [("onnxruntime", UINT8, set()), ("tensorrt", INT8, {LONE})],
    ids=["ort", "tensorrt"],
)
def test_a_softmax_between_pairs_is_integers_in_onnxruntime_alone(
    tmp_path: Path, target: str, codes: tuple[type, int], expected: set
) -> None:
    """ONNX Runtime runs QLinearSoftmax there."""
    file = QdqFile()
    y = file.qdq(softmax(file, linear(file, codes)), "late", *codes)
    product = file.op("MatMul", y, file.weight("w2", axis=1, shape=(SIZE, SIZE)), name="product")
    assert told(file.save(tmp_path / "model.onnx", product), target) == expected


@pytest.mark.parametrize("behind", [prelu, elu, mish, gelu], ids=lambda value: value.__name__)
@pytest.mark.parametrize(("target", "codes"), [("tensorrt", INT8), ("openvino", UINT8)], ids=["tensorrt", "openvino"])
def test_any_activation_fuses_into_the_layer_before_it(
    tmp_path: Path, target: str, codes: tuple[type, int], behind: object
) -> None:
    file = QdqFile(opset=20)
    path = file.save(tmp_path / "model.onnx", behind(file, conv(file, codes)))
    assert told(path, target) == {SPLIT}
    (finding,) = findings(path, target)
    assert finding.fix == "move the pair behind 'behind'"
    assert "between 'conv' and its activation, 'behind'" in finding.what


@pytest.mark.parametrize("behind", [prelu, elu, mish, gelu], ids=lambda value: value.__name__)
def test_onnxruntime_quantizes_in_front_of_the_activations_that_it_does_not_fuse(
    tmp_path: Path, behind: object
) -> None:
    file = QdqFile(opset=20)
    path = file.save(tmp_path / "model.onnx", behind(file, conv(file, UINT8)))
    assert told(path, "onnxruntime") == set()


def test_of_two_activations_that_read_the_pair_neither_can_fuse(tmp_path: Path) -> None:
    file = QdqFile()
    y = conv(file, INT8)
    both = file.op("Sub", file.op("Relu", y, name="relu"), file.op("Sigmoid", y, name="sigmoid"), name="sub")
    assert SPLIT not in told(file.save(tmp_path / "model.onnx", both), "tensorrt")


@pytest.mark.parametrize(
    ("target", "codes"),
    [("tensorrt", INT8), ("openvino", UINT8), ("onnxruntime", UINT8)],
    ids=["tensorrt", "openvino", "onnxruntime"],
)
def test_a_batch_norm_behind_the_pair_of_a_convolution_is_to_be_folded(
    tmp_path: Path, target: str, codes: tuple[type, int]
) -> None:
    file = QdqFile()
    path = file.save(tmp_path / "model.onnx", batch_norm(file, conv(file, codes)))
    assert told(path, target) == {SPLIT}
    (finding,) = findings(path, target)
    assert finding.fix == "fold 'behind' into 'conv' before the model is quantized"
    assert "its batch norm, 'behind'" in finding.what


def test_a_batch_norm_behind_an_add_cannot_be_folded(tmp_path: Path) -> None:
    file = QdqFile()
    x = file.qdq("x", "input")
    y = file.qdq(file.op("Add", file.conv(x, "conv"), x, name="add"), "early")
    assert told(file.save(tmp_path / "model.onnx", batch_norm(file, y)), "tensorrt") == {LONE}


@pytest.mark.parametrize(
    ("target", "takes_a_kernel"), [("tensorrt", False), ("openvino", False), ("onnxruntime", True)]
)
def test_what_is_split_off_takes_a_kernel_where_the_runtime_does_not_round_in_one(
    tmp_path: Path, target: str, takes_a_kernel: bool
) -> None:
    """One convolution of OpenVINO rounds, applies a ReLU and rounds again; ONNX Runtime leaves the ReLU in float."""
    file = QdqFile()
    y = file.op("Relu", conv(file, INT8), name="behind")
    path = file.save(tmp_path / "model.onnx", file.conv(file.qdq(y, "late"), "conv2"))
    (finding,) = [one for one in findings(path, target) if one.rule == "quantizer-before-activation"]
    assert ("takes a kernel of its own" in finding.cost) is takes_a_kernel
