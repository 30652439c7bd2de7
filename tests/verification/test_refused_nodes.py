"""The node that a runtime means when it refuses a file, in the words that it really says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.qdq_files import QdqFile

import fxq
from fxq.errors import RuntimeRefusedError
from fxq.runtimes import get_runtime
from fxq.verification.onnx_file import OnnxFile
from fxq.verification.refusals import refused_node

Write = Callable[[QdqFile, str], str]


def of_two_types(file: QdqFile, y: str) -> str:
    return file.op("Add", y, file.store("one", np.ones(1, np.int64)), name="my (odd) name/Add")


def of_two_types_without_a_name(file: QdqFile, y: str) -> str:
    written = of_two_types(file, y)
    file.nodes[-1].name = ""
    return written


def of_a_wrong_shape(file: QdqFile, y: str) -> str:
    return file.op("MatMul", y, file.store("square", np.ones((5, 5), np.float32)), name="/head/MatMul")


def with_a_wrong_attribute(file: QdqFile, y: str) -> str:
    return file.op("Concat", y, y, name="/head/Concat", axis=7)


def of_a_type_without_a_kernel(file: QdqFile, y: str) -> str:
    y = file.op("Cast", y, name="/head/Cast", to=TensorProto.BFLOAT16)
    return file.op("Cast", file.op("Sin", y, name="/head/Sin"), name="/head/Cast_1", to=TensorProto.FLOAT)


def of_too_many_elements(file: QdqFile, y: str) -> str:
    y = file.op("Reshape", y, file.store("column", np.array([256, 1], np.int64)), name="/head/Reshape")
    y = file.op("Expand", y, file.store("wide", np.array([256, 5000], np.int64)), name="/head/Expand")
    count = file.store("count", np.array([4500], np.int64))
    file.nodes.append(helper.make_node("TopK", [y, count], ["most", "which"], name="/head/TopK"))
    return "most"


def of_a_kernel_that_is_missing(file: QdqFile, y: str) -> str:
    y = file.op("Cast", y, name="/head/Cast", to=TensorProto.DOUBLE)
    return file.op("Cast", file.op("Det", y, name="/head/Det"), name="/head/Cast_1", to=TensorProto.FLOAT)


def with_an_attribute_that_is_unknown(file: QdqFile, y: str) -> str:
    return file.op("Gelu", y, name="/head/Gelu", domain="com.microsoft", beta=1.0)


def of_an_even_window(file: QdqFile, y: str) -> str:
    return file.op("LRN", y, name="/head/LRN", size=4)


def of_another_domain(file: QdqFile, y: str) -> str:
    return file.op("Mystery", y, name="/head/Mystery", domain="com.mine")


def of_an_operator_without_a_form(file: QdqFile, y: str) -> str:
    return file.op("Det", y, name="/head/Det")


def written(path: Path, write: Write) -> Path:
    file = QdqFile()
    # A name that another begins with, and the name of what another reads.
    y = file.op("Relu", file.conv(file.qdq("x", "a"), "my (odd"), name="/head/Relu")
    file.save(path, write(file, y))
    model = onnx.load(path)
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in ("com.mine", "com.microsoft"))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("runtime", "write", "expected"),
    [
        ("onnxruntime", of_two_types, "my (odd) name/Add"),
        ("onnxruntime", of_two_types_without_a_name, None),
        ("onnxruntime", of_a_wrong_shape, "/head/MatMul"),
        ("onnxruntime", with_a_wrong_attribute, "/head/Concat"),
        ("onnxruntime", of_a_type_without_a_kernel, "/head/Sin"),
        ("onnxruntime", of_a_kernel_that_is_missing, "/head/Det"),
        ("onnxruntime", with_an_attribute_that_is_unknown, "/head/Gelu"),
        ("onnxruntime", of_an_even_window, None),
        ("onnxruntime", of_another_domain, "/head/Mystery"),
        ("openvino", of_two_types, "my (odd) name/Add"),
        ("openvino", of_two_types_without_a_name, "my (odd) name/Add_out"),
        ("openvino", of_a_wrong_shape, "/head/MatMul"),
        ("openvino", with_a_wrong_attribute, "/head/Concat"),
        ("openvino", of_another_domain, "/head/Mystery"),
        ("openvino", of_an_operator_without_a_form, "/head/Det"),
        ("tensorrt_rtx", of_two_types, "my (odd) name/Add"),
        ("tensorrt_rtx", of_two_types_without_a_name, "my (odd) name/Add_out"),
        ("tensorrt_rtx", of_a_wrong_shape, "/head/MatMul"),
        ("tensorrt_rtx", of_an_even_window, "/head/LRN"),
        ("tensorrt_rtx", of_too_many_elements, "/head/TopK"),
        ("tensorrt_rtx", with_a_wrong_attribute, "/head/Concat"),
        ("tensorrt_rtx", of_another_domain, "/head/Mystery"),
        ("tensorrt_rtx", of_an_operator_without_a_form, "/head/Det"),
    ],
)
def test_the_node_that_is_refused_is_found(tmp_path: Path, runtime: str, write: Write, expected: str | None) -> None:
    path = written(tmp_path / "model.onnx", write)
    with pytest.raises(RuntimeRefusedError) as refusal:
        get_runtime(runtime).executed_ops(path)
    node = refused_node(OnnxFile.read(path), str(refusal.value))
    assert (node and (node.name or node.outputs[0].name)) == expected


def without_an_output(file: QdqFile, y: str) -> str:
    file.nodes.append(helper.make_node("MaxPool", [y], ["pooled", ""], name="/head/MaxPool", kernel_shape=[2, 2]))
    return "pooled"


def test_words_that_name_no_node_of_the_file_are_about_the_file(tmp_path: Path) -> None:
    file = OnnxFile.read(written(tmp_path / "model.onnx", without_an_output))
    for words in ("no memory", "in node (/head/Max)", "in node (/head/MaxPool_2)", "in node ()", "node /head/MaxPool"):
        assert refused_node(file, words) is None


def test_a_node_of_a_branch_is_found_too(tmp_path: Path) -> None:
    file = QdqFile()
    y = file.op("Relu", file.conv(file.qdq("x", "a"), "conv"), name="relu")
    branch = helper.make_graph(
        [helper.make_node("Sin", [y], ["then"], name="inner"), helper.make_node("Cos", [y], ["other"], name="relu")],
        "branch", [], [helper.make_tensor_value_info("then", TensorProto.FLOAT, None)],
    )  # fmt: skip
    yes = file.store("yes", np.array(True))
    file.save(tmp_path / "model.onnx", file.op("If", yes, name="if", then_branch=branch, else_branch=branch))
    read = OnnxFile.read(tmp_path / "model.onnx")
    found = [refused_node(read, f"Node ({name}) Op") for name in ("inner", "relu", "if")]
    assert [node.op_type for node in found if node is not None] == ["Sin", "Relu", "If"]


def test_a_refusal_names_node_and_module_and_what_to_do(tmp_path: Path) -> None:
    report = fxq.verify(written(tmp_path / "model.onnx", with_a_wrong_attribute), "openvino")
    (refused,) = [finding for finding in report if finding.rule == "refused"]
    assert (refused.node, refused.path) == ("/head/Concat", "head")
    assert "\n" not in refused.what
    assert refused.cost
    assert refused.fix
