"""Files of integer models: QLinear operators where ONNX Runtime has them, and no floats in between."""

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from integer_models import Between, Call, converted
from support.small import images, residual
from torch import nn
from torch.nn import functional as F

import fxq
from fxq.compare.rounding_noise import run_with_rounding_noise
from fxq.export.integer_rules import check_integer


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_a_residual_network_is_written_with_qlinear_operators(tmp_path: Path) -> None:
    integer = fxq.to_integer(converted(residual(), images(4)))
    report = fxq.export_onnx(integer, tmp_path / "integer.onnx")
    written = operators(report.path)
    assert (written["QLinearConv"], written["QLinearAdd"], written["MatMulInteger"]) == (2, 1, 1)
    assert (written["QuantizeLinear"], written["DequantizeLinear"]) == (1, 1)
    assert not written.keys() & {"Conv", "Gemm", "Relu", "ReduceMean", "ConvInteger"}
    assert max(one.max_lsb for one in (*report.parity, *report.optimized_parity, *report.other_batch_parity)) < 0.1


def test_what_has_no_qlinear_operator_is_integer_arithmetic_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inside = Call(lambda x: F.interpolate(F.silu(x) - F.avg_pool2d(x, 3, 1, 1), scale_factor=2, mode="bilinear"))
    x = torch.randn(2, 3, 6, 6)
    last = nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2)
    integer = fxq.to_integer(converted(Between(inside, 4, then=last), x, "tensorrt"))
    report = fxq.export_onnx(integer, tmp_path / "integer.onnx")
    written = operators(report.path)
    assert written["ConvInteger"] == 2
    assert not any(name.startswith("QLinear") for name in written)
    assert [one.max_abs for one in (*report.parity, *report.optimized_parity)] == [0.0, 0.0]


def test_a_product_and_a_linear_layer_have_operators_of_onnx_runtime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    inside = Call(lambda x: x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1)))
    layers = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 2))
    integer = fxq.to_integer(converted(Between(inside, 4, then=layers), x))
    report = fxq.export_onnx(integer, tmp_path / "integer.onnx")
    assert {"QLinearMul", "QGemm"} <= operators(report.path).keys()
    assert max(one.max_lsb for one in report.optimized_parity) < 1


def test_what_float32_makes_of_a_multiplier_counts_as_rounding() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    integer = fxq.to_integer(converted(Between(nn.ReLU(), 4), x))
    # Sums that lie halfway between two codes fall to either side.
    integer.last.multiplier.fill_(2**30)
    integer.last.shift.fill_(37)
    ((_, noisy),) = run_with_rounding_noise(integer, (x,), 0)
    dequantize = integer.graph.output_node().args[0]
    apart = (noisy - integer(x)).abs() / integer.get_buffer(str(dequantize.args[1].target))
    assert 0 < float((apart > 0.5).float().mean()) < 0.02
    assert float(apart.max()) < 1.5


def test_floats_between_are_refused() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 18]>
        graph (float[2] x) => (float[2] y) <float s = {0.5}, int8 z = {0}> {
            codes = QuantizeLinear(x, s, z)
            wide = Cast <to = 1> (codes)
            y = Relu(wide)
        }""")
    with pytest.raises(fxq.ExportError, match="makes float of integers"):
        check_integer(model)


def test_quantizing_again_is_refused() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 18]>
        graph (float[2] x) => (int8[2] y) <float s = {0.5}, int8 z = {0}> {
            codes = QuantizeLinear(x, s, z)
            values = DequantizeLinear(codes, s, z)
            y = QuantizeLinear(values, s, z)
        }""")
    with pytest.raises(fxq.ExportError, match="quantizes what was dequantized"):
        check_integer(model)
