"""Files for TensorRT, compiled by TensorRT-RTX ahead of time: accepted, in int8, and without float detours."""

from pathlib import Path

import pytest
from support.exports import Exports
from support.models import random_images, torchvision_model
from support.plans import dtypes_read

import fxq
from fxq.errors import InputError
from fxq.runtimes import get_runtime, traffic_mb
from fxq.runtimes.tensorrt_rtx import weighted_ops

# Megabytes of activations at 1x3x224x224, to one decimal: what NVIDIA's own placement tool reaches. Without residual
# quantizers they are 37.2, 143.1 and 91.9.
TRAFFIC_MB = {"resnet18": 26.8, "resnet50": 115.0, "mobilenet_v2": 90.3}
WEIGHTED = {"resnet18": 21, "resnet50": 54, "mobilenet_v2": 53}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "resnet50" else (), id=f"{name}, a sample")
        for name in TRAFFIC_MB
    ],
)
def test_activations_travel_as_int8(exports: Exports, name: str) -> None:
    plan = get_runtime("tensorrt_rtx").executed_ops(exports.path(name, "tensorrt", dynamic_batch=False))
    assert len(weighted_ops(plan)) == WEIGHTED[name]
    assert dtypes_read(plan) == {"int8"}
    assert round(traffic_mb(plan), 1) <= TRAFFIC_MB[name]


@pytest.mark.slow
def test_without_residual_quantizers_skips_travel_as_float(tmp_path: Path) -> None:
    recipe = fxq.recipe("tensorrt")
    recipe = recipe.without_pass("plan_residual_adds")
    images = random_images(1)
    converted = fxq.quantize(torchvision_model("resnet18"), [images], recipe, images, progress=False)
    path = fxq.export_onnx(converted, tmp_path / "model.onnx", dynamic_batch=False).path
    assert traffic_mb(get_runtime("tensorrt_rtx").executed_ops(path)) > 1.3 * TRAFFIC_MB["resnet18"]


def test_a_dynamic_batch_compiles_with_an_optimization_profile(exports: Exports) -> None:
    path = exports.path("resnet18", "tensorrt", size=64, dynamic_batch=True)
    image = (3, 64, 64)
    profile = {"x": ((1, *image), (4, *image), (16, *image))}
    plan = get_runtime("tensorrt_rtx", profile=profile).executed_ops(path)
    assert dtypes_read(plan) == {"int8"}
    assert weighted_ops(plan)[0].inputs[0].shape[0] == -1
    with pytest.raises(InputError, match="with the option profile="):
        get_runtime("tensorrt_rtx").executed_ops(path)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"], ids=["concat", "squeeze-and-excitation"])
def test_other_structures_compile(exports: Exports, name: str) -> None:
    plan = get_runtime("tensorrt_rtx").executed_ops(exports.path(name, "tensorrt", size=64, dynamic_batch=False))
    assert dtypes_read(plan) == {"int8"}
