"""export_onnx writes a QDQ file that is complete, named after the model, checked, or no file at all."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from lowered_models import Residual, lower, lowered_residual
from onnx import numpy_helper
from torch import Tensor, fx, nn

from fxq.export import ExportOptions, export_onnx
from fxq.quant import DEQUANTIZE, QUANTIZE
from fxq.runtimes import get_runtime
from fxq.targets import FileRules

STATIC = ExportOptions(dynamic_batch=False)


def run(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    return get_runtime("onnxruntime").run(path, inputs)


def shapes(values: object) -> dict[str, list[str | int]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    gm, x = lowered_residual()
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(gm, path, x, ExportOptions(metadata={"fxq.recipe": "target = 'tensorrt'"}))
    return onnx.load(path)


def test_every_quantizer_of_the_graph_is_in_the_file(tmp_path: Path) -> None:
    gm, x = lowered_residual()
    report = export_onnx(gm, tmp_path / "model.onnx", x)
    kinds = [node.op_type for node in onnx.load(report.path).graph.node]
    assert (report.quantize_nodes, report.dequantize_nodes) == (3, 6)
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (3, 6)
    assert report.opset == 18
    assert report.size_bytes == report.path.stat().st_size
    assert report.parity[0].name == "output"
    assert "3 QuantizeLinear" in str(report)


def test_weights_are_stored_as_int8_under_their_module_path(exported: onnx.ModelProto) -> None:
    stored = {t.name: t for t in exported.graph.initializer}
    for name in ("stem.0.weight", "block.0.weight", "head.2.weight"):
        assert stored[name].data_type == onnx.TensorProto.INT8
    assert stored["head.2.weight"].dims == [10, 16]
    floats = {n for n, t in stored.items() if t.data_type == onnx.TensorProto.FLOAT and not n.endswith(".scale")}
    assert floats == {"stem.0.bias", "block.0.bias", "head.2.bias"}


def test_zero_points_are_written_and_axis_only_per_channel(exported: onnx.ModelProto) -> None:
    stored = {t.name: numpy_helper.to_array(t) for t in exported.graph.initializer}
    for node in exported.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert stored[node.input[2]].dtype == np.int8
            axes = [a.i for a in node.attribute if a.name == "axis"]
            assert axes == ([0] if stored[node.input[1]].ndim else [])


def test_nodes_lead_back_to_modules(exported: onnx.ModelProto) -> None:
    assert [node.name for node in exported.graph.node] == [
        "stem.0_input_quantizer/QuantizeLinear",
        "stem.0_input_quantizer/DequantizeLinear",
        "stem.0.weight/DequantizeLinear",
        "stem.0/Conv",
        "stem.2/Relu",
        "block.0_input_quantizer/QuantizeLinear",
        "block.0_input_quantizer/DequantizeLinear",
        "block.0.weight/DequantizeLinear",
        "block.0/Conv",
        "add/Add",
        "relu/Relu",
        "head.0/GlobalAveragePool",
        "head.1/Reshape",
        "head.2_input_quantizer/QuantizeLinear",
        "head.2_input_quantizer/DequantizeLinear",
        "head.2.weight/DequantizeLinear",
        "head.2/Gemm",
    ]


def test_linear_is_a_gemm_on_the_weight_as_stored(exported: onnx.ModelProto) -> None:
    (gemm,) = [node for node in exported.graph.node if node.op_type == "Gemm"]
    assert {a.name: a.i for a in gemm.attribute}["transB"] == 1


def test_inputs_and_outputs_keep_their_names_and_no_path_leaks(exported: onnx.ModelProto) -> None:
    assert shapes(exported.graph.input) == {"image": ["batch", 3, 16, 16]}
    assert shapes(exported.graph.output) == {"output": ["batch", 10]}
    assert exported.producer_name == "fxq"
    assert {p.key: p.value for p in exported.metadata_props} == {"fxq.recipe": "target = 'tensorrt'"}
    assert b".py" not in exported.SerializeToString()


def test_one_example_gives_a_file_for_any_batch(tmp_path: Path) -> None:
    gm, x = lowered_residual()
    path = export_onnx(gm, tmp_path / "model.onnx", x).path
    batch = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1)).mul(0.5)
    # A tie that two runtimes round to different sides moves an output by a part of a code: atol is one output LSB.
    expected = gm(batch).numpy()
    np.testing.assert_allclose(run(path, batch)[0], expected, atol=np.abs(expected).max() / 127)


def test_a_static_file_has_numbers_for_shapes(tmp_path: Path) -> None:
    gm, x = lowered_residual()
    report = export_onnx(gm, tmp_path / "model.onnx", x, STATIC)
    graph = onnx.load(report.path).graph
    assert shapes(graph.input) == {"image": [1, 3, 16, 16]}
    assert shapes(graph.output) == {"output": [1, 10]}
    assert not report.dynamic_batch


def test_the_rules_decide_on_the_batch_when_the_caller_does_not(tmp_path: Path) -> None:
    gm, x = lowered_residual()
    report = export_onnx(gm, tmp_path / "model.onnx", x, ExportOptions(rules=FileRules(dynamic_batch=False)))
    assert not report.dynamic_batch


class TokenMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 32)

    def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = self.fc(tokens)
        return {"hidden": hidden, "pooled": (hidden * mask).mean(1)}


def test_linear_on_tokens_keeps_its_weight_as_stored_behind_a_transpose(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens, mask = torch.randn(1, 7, 16), torch.ones(1, 7, 1)
    gm = lower(TokenMixer(), tokens, other_inputs=(mask,))
    path = export_onnx(gm, tmp_path / "model.onnx", (tokens, mask)).path
    graph = onnx.load(path).graph
    assert shapes(graph.input) == {"tokens": ["batch", 7, 16], "mask": ["batch", 7, 1]}
    assert shapes(graph.output) == {"hidden": ["batch", 7, 32], "pooled": ["batch", 32]}
    kinds = {node.name: node for node in graph.node}
    assert kinds["fc/MatMul"].input[1] == kinds["fc/Transpose"].output[0]
    assert kinds["fc/Transpose"].input[0] == kinds["fc.weight/DequantizeLinear"].output[0]


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        up = self.up(x)
        return up, up.relu()


def test_a_transposed_convolution_has_axis_1_and_outputs_are_numbered(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 5)
    path = export_onnx(lower(TwoOutputs(), x), tmp_path / "model.onnx", x).path
    graph = onnx.load(path).graph
    assert [value.name for value in graph.output] == ["output", "output_1"]
    (weight,) = [node for node in graph.node if node.name == "up.weight/DequantizeLinear"]
    assert [a.i for a in weight.attribute] == [1]


def test_four_bits_in_an_int8_are_clipped_for_every_runtime(tmp_path: Path) -> None:
    gm, x = lowered_residual(bits=4)
    path = export_onnx(gm, tmp_path / "model.onnx", x).path
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("Clip") == kinds.count("QuantizeLinear") == 3
    large = x * 3  # beyond the calibrated range: without the clip these become codes beyond 7
    expected = gm(large).numpy()
    np.testing.assert_allclose(run(path, large)[0], expected, atol=np.abs(expected).max() / 7)


@pytest.mark.parametrize("axis", [None, 1, -1], ids=["per-tensor", "axis-1", "last-axis"])
@pytest.mark.parametrize(
    ("dtype", "bounds", "opset"),
    [
        (torch.int8, (-128, 127), 18),
        (torch.int8, (-8, 7), 18),
        (torch.uint8, (0, 255), 18),
        (torch.uint8, (0, 127), 18),
        (torch.int16, (-32768, 32767), 21),
        (torch.uint16, (0, 65535), 21),
    ],
    ids=["int8", "int4", "uint8", "uint7", "int16", "uint16"],
)
def test_every_dtype_and_axis_computes_the_same_in_onnxruntime(
    tmp_path: Path, dtype: torch.dtype, bounds: tuple[int, int], axis: int | None, opset: int
) -> None:
    torch.manual_seed(0)
    root, graph = nn.Module(), fx.Graph()
    x = torch.randn(2, 3, 4, 5) * 3
    shape = () if axis is None else (x.shape[axis],)
    root.register_buffer("scale", torch.rand(shape) * 4 / (bounds[1] - bounds[0]) + 1e-5)
    root.register_buffer("zero_point", torch.full(shape, sum(bounds) // 2 + 1, dtype=torch.int32))
    value = graph.placeholder("x")
    params = graph.get_attr("scale"), graph.get_attr("zero_point"), axis
    codes = graph.call_function(QUANTIZE, (value, *params, *bounds, dtype))
    graph.output(graph.call_function(DEQUANTIZE, (codes, *params, torch.float32)))
    report = export_onnx(fx.GraphModule(root, graph), tmp_path / "model.onnx", x)
    assert report.opset == opset
    assert report.parity[0].max_abs == 0


def test_a_graph_whose_quantizers_are_all_off_is_written_in_float(tmp_path: Path) -> None:
    report = export_onnx(fx.symbolic_trace(Residual()), tmp_path / "model.onnx", torch.randn(1, 3, 16, 16))
    assert report.quantize_nodes == report.dequantize_nodes == 0


def test_a_half_precision_model_has_half_precision_scales_and_opset_19(tmp_path: Path) -> None:
    gm, x = lowered_residual(dtype=torch.float16)
    report = export_onnx(gm, tmp_path / "model.onnx", x)
    stored = onnx.load(report.path).graph.initializer
    assert report.opset == 19
    scales = {t.name: t.data_type for t in stored if t.name.endswith("_input_quantizer.scale")}
    assert len(scales) == 3
    assert set(scales.values()) == {onnx.TensorProto.FLOAT16}


def test_float32_scales_of_a_half_precision_model_are_written_in_its_dtype(tmp_path: Path) -> None:
    gm, x = lowered_residual(dtype=torch.float16)
    for name, buffer in list(gm.named_buffers()):
        if name.endswith(".scale"):
            gm.get_submodule(name.rpartition(".")[0]).register_buffer("scale", buffer.float())
    report = export_onnx(gm, tmp_path / "model.onnx", x)
    stored = {t.name: t.data_type for t in onnx.load(report.path).graph.initializer}
    scales = {node.input[1] for node in onnx.load(report.path).graph.node if node.op_type == "QuantizeLinear"}
    assert {stored[name] for name in scales} == {onnx.TensorProto.FLOAT16}


def test_large_weights_go_to_a_file_beside_it(tmp_path: Path) -> None:
    gm, x = lowered_residual()
    report = export_onnx(gm, tmp_path / "big.onnx", x, ExportOptions(external_data_threshold=100))
    assert report.external_data == tmp_path / "big.onnx.data"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    proto = onnx.load(report.path, load_external_data=False)
    locations = {entry.value for t in proto.graph.initializer for entry in t.external_data if entry.key == "location"}
    assert locations == {"big.onnx.data"}
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in (report.path, report.external_data):
        file.rename(moved / file.name)
    run(moved / "big.onnx", x)
    report = export_onnx(gm, moved / "big.onnx", x)
    assert (report.external_data, [file.name for file in moved.iterdir()]) == (None, ["big.onnx"])


def test_nothing_is_printed_warned_or_modified(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gm, x = lowered_residual()
    gm.train()
    code, state = gm.code, {name: value.clone() for name, value in gm.state_dict().items()}
    export_onnx(gm, tmp_path / "model.onnx", x)
    assert capfd.readouterr() == ("", "")
    assert gm.code == code
    assert gm.training
    assert all(torch.equal(value, state[name]) for name, value in gm.state_dict().items())
