"""Files for TensorRT with a float side in float16, compiled by TensorRT-RTX: what travels, and in which dtype."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxq
from fxq.runtimes import ExecutedOp, get_runtime, traffic_mb
from fxq.runtimes.tensorrt_rtx import weighted_ops

Plan = tuple[ExecutedOp, ...]


class Chain(nn.Module):
    """Convolution, norm and activation, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.hardswish(self.second(functional.silu(self.norm(self.first(x)))))


class Attention(nn.Module):
    """Query, key and value from one projection, as in ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(64), nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).reshape(*x.shape[:2], 3, 4, 16).permute(2, 0, 3, 1, 4).unbind(0)
        attention = torch.softmax(query @ key.transpose(-2, -1) * 0.25, -1)
        return x + self.out((attention @ value).transpose(1, 2).reshape(x.shape))


def plan_of(
    model: nn.Module, x: Tensor, path: Path, recipe: str = "tensorrt", dtype: torch.dtype | None = None
) -> Plan:
    torch.manual_seed(0)
    batches = None if recipe == "tensorrt-int4" else [x]
    converted = fxq.quantize(model.eval(), batches, recipe, x, progress=False)
    fxq.export_onnx(converted, path, dynamic_batch=False, float_dtype=dtype)
    return get_runtime("tensorrt_rtx").executed_ops(path)


def dtypes_read(plan: Plan) -> set[str]:
    return {dtype for kernel in weighted_ops(plan) for dtype in kernel.input_dtypes}


def test_activations_travel_in_six_tenths_of_the_bytes(tmp_path: Path) -> None:
    x = torch.randn(2, 16, 32, 32)
    before = plan_of(Chain(), x, tmp_path / "float32.onnx")
    after = plan_of(Chain(), x, tmp_path / "float16.onnx", dtype=torch.float16)
    assert dtypes_read(after) == {"int8"}
    assert len(after) == len(before)
    assert traffic_mb(after) <= 0.6 * traffic_mb(before)
    assert "float32" not in {dtype for kernel in after for dtype in kernel.input_dtypes + kernel.output_dtypes}


@pytest.mark.parametrize(("recipe", "dtype"), [("tensorrt", "int8"), ("tensorrt-fp8", "float8e4m3fn")])
def test_a_projection_to_query_key_and_value_is_one_quantized_product(tmp_path: Path, recipe: str, dtype: str) -> None:
    plan = plan_of(Attention(), torch.randn(2, 32, 64), tmp_path / "model.onnx", recipe, torch.float16)
    assert dtypes_read(plan) == {dtype}
    assert len(weighted_ops(plan)) == 2
    # Otherwise the builder dequantizes the weight, and multiplies in float.
    assert not any(kernel.kind == "runtime_fusion" for kernel in plan)


def test_four_bit_weights_are_read_by_the_product(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(192, 128), nn.GELU(), nn.Linear(128, 64))
    path = tmp_path / "model.onnx"
    plan = plan_of(model, torch.randn(2, 8, 192), path, "tensorrt-int4", torch.float16)
    products = [kernel for kernel in plan if any("MatMul" in name for name in kernel.fused)]
    assert [kernel.input_dtypes for kernel in products] == [("float16",), ("float16",)]  # no dequantized weight
    stored = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.INT4 in stored
