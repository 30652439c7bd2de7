"""The module that a node came from: in files of both of torch's exporters, with quantizers of another tool."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from support.qdq_files import QdqFile
from torch import Tensor, nn

from fxq.verification.onnx_file import OnnxFile

IMAGE = (1, 4, 8, 8)


class Block(nn.Module):
    """Calls its activation twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv_1, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv_1(self.relu(self.conv(x))) + x)


class Net(nn.Module):
    """Sequences in sequences, a list, and a layer of a module that is not called itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 1)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head["conv"](x) + x


class OneImage(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = [{"x": np.random.default_rng(0).standard_normal(IMAGE).astype(np.float32)}]

    def get_next(self) -> dict[str, Any] | None:
        return self.left.pop() if self.left else None


# All that compute something themselves.
MODULES = {
    *("stem.0.0", "stem.0.1", "head.conv"),
    *(f"layers.{index}{part}" for index in (0, 1) for part in ("", ".conv", ".conv_1", ".relu")),
}


@pytest.fixture(scope="module", params=[True, False], ids=["torch.export", "TorchScript"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.onnx.export's own deprecations
        torch.onnx.export(
            Net().eval(), (torch.zeros(IMAGE),), path,
            input_names=["x"], dynamo=request.param, opset_version=18, verbose=False,
        )  # fmt: skip
    return path


def test_nodes_of_torchs_exporters_have_the_path_of_their_module(exported: Path) -> None:
    file = OnnxFile(exported, ir.load(exported))
    paths = {file.path_of(node) for node in file.model.graph}
    (outside,) = paths - MODULES
    assert paths >= MODULES
    assert file.node_of(outside).op_type == "Add"  # the model's own, which is in no module


def test_quantizers_of_another_tool_have_the_path_of_what_they_belong_to(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    quantize_static(exported, path, OneImage(), quant_format=QuantFormat.QDQ)
    file, found = OnnxFile.read(path), dict[str, list[str]]()
    for node in filter(is_quantizer, file.model.graph):
        found.setdefault(file.path_of(node), []).append(str(node.name))
        writer = None if node.inputs[0] is None else node.inputs[0].producer()
        assert writer is None or file.path_of(writer) in (file.path_of(node), writer.name)
    # A pair each for the image that it reads and for what it writes, weight and bias.
    assert len(found["stem.0.0"]) >= 4
    assert len(found["head.conv"]) == 4
    names = {node.name for node in file.model.graph}
    assert {told for told in found if told not in names} <= MODULES


def is_quantizer(node: ir.Node) -> bool:
    return node.op_type in ("QuantizeLinear", "DequantizeLinear")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("/features/features.0/features.0.0/Conv", "features.0.0"),
        ("/bert/encoder/layer.0/attention/self/query/Conv", "bert.encoder.layer.0.attention.self.query"),
        ("/act_1/Conv", "act_1"),
        ("/Conv", "/Conv"),
        ("conv1/Conv", "conv1/Conv"),
        ("StatefulPartitionedCall/model/conv1/Conv2D", "StatefulPartitionedCall/model/conv1/Conv2D"),
    ],
)
def test_names_of_torchs_older_exporter_hold_the_path_and_others_none(tmp_path: Path, name: str, path: str) -> None:
    file = QdqFile()
    file.save(tmp_path / "model.onnx", file.conv(file.qdq("x", "a"), name, file.store("onnx::Conv_1", weight())))
    read = OnnxFile.read(tmp_path / "model.onnx")
    assert [read.path_of(node) for node in read.model.graph if node.op_type == "Conv"] == [path]
    # Its input has no other home, and what tells nothing keeps its own name.
    told = path if path != name else "a/q"
    assert [read.path_of(node) for node in read.model.graph if node.name == "a/q"] == [told]


def test_of_two_modules_whose_names_differ_by_a_number_stored_tensors_tell(tmp_path: Path) -> None:
    file = QdqFile()
    y = file.conv(file.qdq("x", "a"), "/act/Conv", file.store("act.weight", weight()))
    y = file.conv(y, "/act_1/Conv", file.store("act_1.weight", weight()))
    y = file.conv(y, "/tied/Conv", file.store("elsewhere.weight", weight()))
    y = file.op("Relu", file.op("Relu", y, name="/relu/Relu"), name="/relu_1/Relu")
    file.save(tmp_path / "model.onnx", y)
    read = OnnxFile.read(tmp_path / "model.onnx")
    paths = [read.path_of(node) for node in read.model.graph if node.op_type in ("Conv", "Relu")]
    assert paths == ["act", "act_1", "tied", "relu", "relu"]


def paths_of(file: QdqFile, output: str, folder: Path) -> dict[str, str]:
    """Return the path of each node, by its name or what it writes."""
    read = OnnxFile.read(file.save(folder / "model.onnx", output))
    return {node.name or str(node.outputs[0].name): read.path_of(node) for node in read.model.graph}


def test_what_onnxruntime_fused_before_it_quantized_has_the_path_of_its_module(tmp_path: Path) -> None:
    """quant_pre_process makes one node of a product and its bias, and writes functions out without names."""
    file = QdqFile()
    x = file.qdq("x", "gemm_input_reshape")
    y = file.op("MatMul", x, file.weight("w", axis=1, shape=(8, 8)), name="/mlp/mlp.0/MatMul/MatMulAddFusion")
    file.nodes.append(helper.make_node("Identity", [y], ["/mlp/mlp.0/Add_output_0"], name="gemm_output_reshape"))
    y = file.qdq("/mlp/mlp.0/Add_output_0", "/mlp/mlp.0/Add_output_0_QuantizeLinear")
    file.nodes.append(helper.make_node("HardSigmoid", [y], ["_inlfunc_HardSwish_HS_X"]))
    gate = file.qdq("_inlfunc_HardSwish_HS_X", "gate")
    file.nodes.append(helper.make_node("Mul", [y, gate], ["/act/HardSwish_output_0"]))
    file.nodes.append(helper.make_node("Sin", ["/act/HardSwish_output_0"], ["unknown"]))
    paths = paths_of(file, "unknown", tmp_path)
    assert paths["/mlp/mlp.0/MatMul/MatMulAddFusion"] == "mlp.0"
    assert paths["gemm_input_reshape/q"] == "mlp.0"
    assert paths["gemm_output_reshape"] == "mlp.0"
    assert paths["/mlp/mlp.0/Add_output_0_QuantizeLinear/q"] == "mlp.0"
    assert paths["_inlfunc_HardSwish_HS_X"] == paths["gate/q"] == paths["/act/HardSwish_output_0"] == "act"
    assert paths["unknown"] == ""


def test_what_nncf_inserts_in_modules_of_torch_belongs_to_what_it_rounds(tmp_path: Path) -> None:
    file = QdqFile()
    y = file.op("Relu", file.conv("x", "/conv/Conv", file.store("conv.weight", weight())), name="/block/act/Relu")
    scaled = file.op("Mul", y, file.store("s", np.ones(1, np.float32)), name="/head/head/mul/0__0.0/Mul")
    for name, value in (("/block/act/block/act/relu/0__0.0", y), ("/head/head/conv2d/0__1.0", scaled)):
        y = file.qdq(value, name)
        file.nodes[-1].name, file.nodes[-2].name = f"{name}/DequantizeLinear", f"{name}/QuantizeLinear"
    paths = paths_of(file, file.conv(y, "/head/Conv", file.store("head.weight", weight())), tmp_path)
    assert paths["/block/act/block/act/relu/0__0.0/QuantizeLinear"] == "block.act"
    assert paths["/head/head/conv2d/0__1.0/QuantizeLinear"] == "head"


@pytest.mark.parametrize(
    ("scopes", "path"),
    [
        ("['', 'layer1', 'layer1.0', 'conv2d']", "layer1.0"),
        ("['', 'conv2d']", "conv"),
        ("[]", "conv"),
        ("(", "conv"),
        ("1", "conv"),
        ("-" * 100_000 + "1", "conv"),
        ("{[]: 1}", "conv"),
    ],
    ids=["a module", "of the model itself", "nothing", "no list", "a number", "deep", "no key"],
)
def test_scopes_are_told_by_torch_and_else_the_name_is(tmp_path: Path, scopes: str, path: str) -> None:
    file = QdqFile()
    file.save(tmp_path / "model.onnx", file.conv(file.qdq("x", "a"), "conv"))
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.node[-1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    onnx.save(model, tmp_path / "model.onnx")
    read = OnnxFile.read(tmp_path / "model.onnx")
    assert [read.path_of(node) for node in read.model.graph if node.op_type == "Conv"] == [path]


def weight() -> np.ndarray:
    return np.ones((4, 4, 3, 3), np.float32)
