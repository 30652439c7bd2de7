"""Files for ONNX Runtime: every operation between the first quantizer and the last runs in integers."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from support.exports import Exports

import fxq
from fxq.runtimes import count_kinds, get_runtime

# How many convolutions and residual adds the model has. The counts do not depend on the image size.
MODELS = {"resnet18": (20, 8), "resnet50": (53, 16), "mobilenet_v2": (52, 10)}
FLOAT = ("Conv", "Add", "Relu", "Clip", "Gemm", "MatMul", "GlobalAveragePool", "ReduceMean")


def executed(exports: Exports, name: str) -> Counter[str]:
    return count_kinds(get_runtime("onnxruntime").executed_ops(exports.path(name, "onnxruntime", size=64)))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "resnet50" else (), id=f"{name}, a sample")
        for name in MODELS
    ],
)
def test_every_convolution_add_and_gemm_is_fused(exports: Exports, name: str) -> None:
    operators = executed(exports, name)
    convolutions, adds = MODELS[name]
    assert (operators["QLinearConv"], operators["QLinearAdd"], operators["QGemm"]) == (convolutions, adds, 1)
    assert {kind: operators[kind] for kind in FLOAT if operators[kind]} == {}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "resnet50" else ()) for name in MODELS]
)
def test_values_become_integers_once_and_the_last_layer_gives_floats(exports: Exports, name: str) -> None:
    operators = executed(exports, name)
    assert operators["QuantizeLinear"] <= 2
    assert operators["DequantizeLinear"] == 0
    assert operators["QLinearGlobalAveragePool"] == 1


def test_a_gelu_between_integers_is_one_kernel_with_one_dequantizer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GELU(), torch.nn.Conv2d(8, 8, 1)).eval()
    converted = fxq.quantize(model, [torch.randn(2, 3, 8, 8)], "onnxruntime", progress=False)
    assert fxq.export_onnx(converted, tmp_path / "model.onnx").opset == 20
    found = count_kinds(get_runtime("onnxruntime").executed_ops(tmp_path / "model.onnx"))
    kinds = ("QLinearConv", "Gelu", "DequantizeLinear", "QuantizeLinear", "Erf")
    assert [found[kind] for kind in kinds] == [2, 1, 2, 2, 0]
    older = fxq.export_onnx(converted, tmp_path / "older.onnx", opset=18)
    assert older.opset == 18
