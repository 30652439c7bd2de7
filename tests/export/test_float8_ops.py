"""Float8 e4m3: the codes of torch's own cast, in ONNX Runtime and in TensorRT-RTX."""

from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from hand_built import Builder, kernels, run, stored
from torch import Tensor, fx

from fxq.export import ExportOptions, export_onnx
from fxq.quant import DEQUANTIZE, QUANTIZE
from fxq.runtimes import get_runtime
from fxq.runtimes.tensorrt_rtx import weighted_ops
from fxq.targets import FileRules

E4M3 = torch.float8_e4m3fn


def float8_linear() -> tuple[fx.GraphModule, Tensor]:
    """A linear layer with float8 input (per tensor) and weight (per channel)."""
    generator = torch.Generator().manual_seed(0)
    build = Builder()
    params = build.read("input.scale", torch.tensor(0.01)), build.read("input.zero", torch.zeros((), dtype=E4M3))
    codes = build.call(QUANTIZE, build.input(), *params, None, -448, 448, E4M3)
    value = build.call(DEQUANTIZE, codes, *params, None, torch.float32)
    weight = torch.randn(8, 16, generator=generator) * 100
    steps = torch.rand(8, generator=generator) * 0.01 + 0.001
    read = build.read("fc.weight", weight.to(E4M3)), build.read("fc.weight_scale", steps)
    zero = build.read("fc.weight_zero", torch.zeros(8, dtype=E4M3))
    gm = build.finish(build.call(F.linear, value, build.call(DEQUANTIZE, *read, zero, 0, torch.float32), None))
    return gm, torch.randn(4, 16, generator=generator) * 2


def test_codes_are_rounded_half_to_even_and_saturate() -> None:
    x = torch.tensor([0.3, 17.0, 18.0, 19.0, 448.0, 464.0, 1e6, -1e6, 0.0])
    codes = QUANTIZE(x, torch.tensor(1.0), torch.zeros((), dtype=E4M3), None, -448, 448, E4M3)
    assert codes.float().tolist() == [0.3125, 16, 18, 20, 448, 448, 448, -448, 0]


def test_the_file_holds_float8_and_runs_in_onnxruntime(tmp_path: Path) -> None:
    gm, x = float8_linear()
    report = export_onnx(gm, tmp_path / "model.onnx", x)
    assert report.opset == 19
    assert stored(report.path)["fc.weight"].data_type == onnx.TensorProto.FLOAT8E4M3FN
    # onnxruntime 1.31 would fuse the Gemm into a QGemm, which it then refuses for float8.
    result = get_runtime("onnxruntime", optimize=False).run(report.path, x)[0]
    # The codes are the same; float32 products are added up in another order.
    np.testing.assert_allclose(result, gm(x).numpy(), rtol=1e-4, atol=1e-4)


def test_a_float8_weight_alone_is_float_when_the_file_is_loaded(tmp_path: Path) -> None:
    build = Builder()
    codes = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).to(E4M3)
    read = build.read("fc.weight", codes), build.read("fc.weight_scale", torch.linspace(0.01, 0.02, 8))
    weight = build.call(DEQUANTIZE, *read, build.read("fc.weight_zero", torch.zeros(8, dtype=E4M3)), 0, torch.float32)
    gm, x = build.finish(build.call(F.linear, build.input(), weight, None)), torch.ones(4, 3, 16)
    report = export_onnx(gm, tmp_path / "model.onnx", x, ExportOptions(rules=FileRules(fast_weight_only=True)))
    assert report.opset == 19
    # There is no MatMulNBits of float8.
    assert kernels(report.path) == {"MatMul": 1}
    np.testing.assert_allclose(run(report.path, x)[0], gm(x).numpy(), rtol=1e-4, atol=1e-4)


def test_tensorrt_rtx_compiles_the_file(tmp_path: Path) -> None:
    gm, x = float8_linear()
    path = export_onnx(gm, tmp_path / "model.onnx", x, ExportOptions(dynamic_batch=False)).path
    (linear,) = weighted_ops(get_runtime("tensorrt_rtx").executed_ops(path))
    assert linear.input_dtypes == ("float8e4m3fn",)
