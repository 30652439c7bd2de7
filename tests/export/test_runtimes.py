"""The exported files in the runtimes they are for: ONNX Runtime fuses them, TensorRT-RTX compiles them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lowered_models import lowered_residual
from torch import Tensor, fx, nn

from fxq.errors import InputError
from fxq.export import ExportOptions, export_onnx
from fxq.quant import DEQUANTIZE, QUANTIZE
from fxq.runtimes import count_kinds, get_runtime
from fxq.runtimes.tensorrt_rtx import weighted_ops
from fxq.targets import TENSORRT

TENSORRT_RULES = TENSORRT.file


class Affine:
    """Adds affine uint8 quantize and dequantize nodes, ONNX Runtime's placement, to a graph under construction."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root, self.graph = root, graph

    def read(self, name: str, value: Tensor) -> fx.Node:
        self.root.register_buffer(name, value)
        return self.graph.get_attr(name)

    def activation(self, node: fx.Node, name: str, scale: float, zero_point: int) -> fx.Node:
        params = (
            self.read(f"{name}_scale", torch.tensor(scale)),
            self.read(f"{name}_zero_point", torch.tensor(zero_point, dtype=torch.uint8)),
        )
        q = self.graph.call_function(QUANTIZE, (node, *params, None, 0, 255, torch.uint8))
        return self.graph.call_function(DEQUANTIZE, (q, *params, None, torch.float32))

    def stored(self, name: str, codes: Tensor, scale: Tensor) -> fx.Node:
        read = self.read(name, codes)
        params = (
            self.read(f"{name}_scale", scale),
            self.read(f"{name}_zero_point", torch.zeros_like(scale, dtype=codes.dtype)),
        )
        return self.graph.call_function(DEQUANTIZE, (read, *params, 0, torch.float32))


def lowered_for_onnxruntime() -> tuple[fx.GraphModule, Tensor]:
    """conv -> relu -> conv -> flatten -> linear, inputs and outputs quantized, biases int32."""
    torch.manual_seed(0)
    root, graph = nn.Module(), fx.Graph()
    add = Affine(root, graph)
    value = add.activation(graph.placeholder("x"), "input", 0.02, 128)
    scale_in = 0.02
    for name, shape, scale_out in (("a", (8, 3, 3, 3), 0.02), ("b", (8, 8, 3, 3), 0.03), ("fc", (5, 8 * 16), 0.05)):
        codes, scale = torch.randint(-127, 128, shape, dtype=torch.int8), torch.rand(shape[0]) * 0.004 + 0.001
        bias = torch.randint(-500, 500, (shape[0],), dtype=torch.int32)
        weight, bias_node = (
            add.stored(f"{name}_weight", codes, scale),
            add.stored(f"{name}_bias", bias, scale * scale_in),
        )
        if name == "fc":
            flat = graph.call_function(torch.flatten, (value, 1))
            value = graph.call_function(F.linear, (flat, weight, bias_node))
        else:
            value = graph.call_function(F.conv2d, (value, weight, bias_node), {"padding": 1})
        if name == "a":
            value = graph.call_function(F.relu, (value,))
        value, scale_in = add.activation(value, name, scale_out, 0 if name == "a" else 128), scale_out
    graph.output(value)
    return fx.GraphModule(root, graph), torch.rand(1, 3, 4, 4)


def test_onnxruntime_fuses_affine_uint8_with_int32_bias_completely(tmp_path: Path) -> None:
    gm, x = lowered_for_onnxruntime()
    report = export_onnx(gm, tmp_path / "model.onnx", x, ExportOptions(dynamic_batch=False))
    kinds = count_kinds(get_runtime("onnxruntime").executed_ops(report.path))
    assert {kind: kinds[kind] for kind in ("QLinearConv", "QGemm", "QuantizeLinear", "DequantizeLinear")} == {
        "QLinearConv": 2,
        "QGemm": 1,
        "QuantizeLinear": 1,
        "DequantizeLinear": 1,
    }
    assert kinds["Relu"] == kinds["Conv"] == kinds["Gemm"] == 0


def test_a_quantized_output_is_counted_in_its_own_step(tmp_path: Path) -> None:
    gm, x = lowered_for_onnxruntime()
    (output,) = export_onnx(gm, tmp_path / "model.onnx", x).parity
    assert output.step == pytest.approx(0.05)
    assert output.max_lsb <= 1


@pytest.mark.parametrize("dynamic_batch", [True, False], ids=["dynamic", "static"])
def test_onnxruntime_with_its_optimizations_agrees(tmp_path: Path, dynamic_batch: bool) -> None:
    gm, x = lowered_residual()
    path = export_onnx(gm, tmp_path / "model.onnx", x, ExportOptions(dynamic_batch=dynamic_batch)).path
    expected = gm(x).numpy()
    # One LSB of the output: fused kernels round ties and add up in another order.
    np.testing.assert_allclose(
        get_runtime("onnxruntime").run(path, {"image": x})[0], expected, atol=np.abs(expected).max() / 127
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_tensorrt_rtx_compiles_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    gm, x = lowered_residual(dtype=dtype)
    options = ExportOptions(dynamic_batch=False, rules=TENSORRT_RULES)
    path = export_onnx(gm, tmp_path / "model.onnx", x, options).path
    weighted = weighted_ops(get_runtime("tensorrt_rtx").executed_ops(path))
    assert {found for kernel in weighted for found in kernel.input_dtypes} == {"int8"}


def test_tensorrt_rtx_compiles_a_dynamic_batch_given_a_profile(tmp_path: Path) -> None:
    gm, x = lowered_residual()
    path = export_onnx(gm, tmp_path / "model.onnx", x, ExportOptions(rules=TENSORRT_RULES)).path
    with pytest.raises(InputError, match="option profile="):
        get_runtime("tensorrt_rtx").executed_ops(path)
    profile = {"image": tuple((batch, 3, 16, 16) for batch in (1, 8, 32))}
    assert weighted_ops(get_runtime("tensorrt_rtx", profile=profile).executed_ops(path))
