"""float8 e4m3 for TensorRT: standard Q/DQ with a float8 zero point, which its builder runs on float8 kernels."""

from pathlib import Path

import onnx
import torch
from torch import nn

import fxq
from fxq.runtimes import get_runtime
from fxq.runtimes.tensorrt_rtx import weighted_ops

E4M3 = fxq.QuantDescriptor(num_bits=(4, 3))
RECIPE = fxq.recipe("tensorrt").replace(default=fxq.QConfig(E4M3, E4M3.replace(axis=0)))


def test_a_network_in_float8_is_built_on_float8_kernels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(512, 64)
    ).eval()
    x = torch.randn(4, 16, 8, 8)
    converted = fxq.quantize(model, [x], RECIPE, progress=False)
    path = tmp_path / "float8.onnx"
    report = fxq.export_onnx(converted, path, dynamic_batch=False)
    assert report.opset == 19
    types = {item.data_type for item in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in types
    weighted = weighted_ops(get_runtime("tensorrt_rtx").executed_ops(path))
    assert {dtype for kernel in weighted for dtype in kernel.input_dtypes} == {"float8e4m3fn"}
    with torch.no_grad():
        noise = model(x) - converted(x)
        assert 20 * torch.log10(model(x).norm() / noise.norm()) > 20  # three mantissa bits: a relative 1/16 a product
