"""Files for TensorRT, compiled by TensorRT-RTX ahead of time: accepted, in int8, and without float detours."""

from pathlib import Path

import pytest
from support.exports import Exports
from support.models import random_images, torchvision_model
from support.trt_plan import RefusedError, compile_plan

import fxq

# Megabytes of activations at 1x3x224x224, to one decimal: what NVIDIA's own placement tool reaches. Without residual
# quantizers they are 37.2, 143.1 and 91.9.
TRAFFIC_MB = {"resnet18": 26.8, "resnet50": 115.0, "mobilenet_v2": 90.3}
WEIGHTED = {"resnet18": 21, "resnet50": 54, "mobilenet_v2": 53}


@pytest.mark.parametrize("name", TRAFFIC_MB)
def test_activations_travel_as_int8(exports: Exports, name: str) -> None:
    plan = compile_plan(exports.path(name, "tensorrt", dynamic_batch=False))
    assert len(plan.weighted) == WEIGHTED[name]
    assert plan.weighted_input_dtypes == {"Int8"}
    assert round(plan.traffic_mb, 1) <= TRAFFIC_MB[name]


def test_without_residual_quantizers_skips_travel_as_float(tmp_path: Path) -> None:
    recipe = fxq.recipe("tensorrt")
    recipe = recipe.without_pass("plan_residual_adds")
    images = random_images(1)
    converted = fxq.quantize(torchvision_model("resnet18"), [images], recipe, images, progress=False)
    path = fxq.export_onnx(converted, tmp_path / "model.onnx", dynamic_batch=False).path
    assert compile_plan(path).traffic_mb > 1.3 * TRAFFIC_MB["resnet18"]


def test_a_dynamic_batch_compiles_with_an_optimization_profile(exports: Exports) -> None:
    path = exports.path("resnet18", "tensorrt", size=64, dynamic_batch=True)
    image = (3, 64, 64)
    plan = compile_plan(path, {"x": ((1, *image), (4, *image), (16, *image))})
    assert plan.weighted_input_dtypes == {"Int8"}
    assert plan.weighted[0].inputs[0].shape[0] == -1
    with pytest.raises(RefusedError, match="no optimization profile"):
        compile_plan(path)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"], ids=["concat", "squeeze-and-excitation"])
def test_other_structures_compile(exports: Exports, name: str) -> None:
    plan = compile_plan(exports.path(name, "tensorrt", size=64, dynamic_batch=False))
    assert plan.weighted_input_dtypes == {"Int8"}
