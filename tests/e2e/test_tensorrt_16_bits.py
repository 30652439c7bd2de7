"""Files for TensorRT with a float side in float16, compiled by TensorRT-RTX: what travels, and in which dtype."""

from pathlib import Path

import onnx
import pytest
import torch
from support.plans import dtypes_read, plan_of, quantized
from support.structures import Attention, Chains, image, tokens
from torch import nn

from fxq.runtimes import traffic_mb
from fxq.runtimes.tensorrt_rtx import weighted_ops


def test_activations_travel_in_six_tenths_of_the_bytes(tmp_path: Path) -> None:
    converted = quantized(Chains("silu", "hardswish"), image())
    before = plan_of(converted, tmp_path / "float32.onnx")
    after = plan_of(converted, tmp_path / "float16.onnx", torch.float16)
    assert dtypes_read(after) == {"int8"}
    assert len(after) == len(before)
    assert traffic_mb(after) <= 0.6 * traffic_mb(before)
    assert "float32" not in {dtype for kernel in after for dtype in kernel.input_dtypes + kernel.output_dtypes}


@pytest.mark.parametrize(("recipe", "dtype"), [("tensorrt", "int8"), ("tensorrt-fp8", "float8e4m3fn")])
def test_a_projection_to_query_key_and_value_is_one_quantized_product(tmp_path: Path, recipe: str, dtype: str) -> None:
    plan = plan_of(quantized(Attention(), tokens(), recipe), tmp_path / "model.onnx", torch.float16)
    assert dtypes_read(plan) == {dtype}
    assert len(weighted_ops(plan)) == 2
    # Otherwise the builder dequantizes the weight, and multiplies in float.
    assert not any(kernel.kind == "runtime_fusion" for kernel in plan)


def test_four_bit_weights_are_read_by_the_product(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(192, 128), nn.GELU(), nn.Linear(128, 64))
    path = tmp_path / "model.onnx"
    plan = plan_of(quantized(model, torch.randn(2, 8, 192), "tensorrt-int4"), path, torch.float16)
    products = [kernel for kernel in plan if any("MatMul" in name for name in kernel.fused)]
    assert [kernel.input_dtypes for kernel in products] == [("float16",), ("float16",)]  # no dequantized weight
    stored = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.INT4 in stored
