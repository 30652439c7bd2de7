"""torchvision's detectors, unedited: their backbones and heads are islands, each of which becomes a file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection, optical_flow

import fxq

pytestmark = [
    pytest.mark.slow,
    # Untrained networks: little is left of deep ones, and they find little.
    pytest.mark.filterwarnings("ignore:.* got a single value from all of the data:UserWarning"),
    pytest.mark.filterwarnings("ignore:(the island|the file in ONNX Runtime|the converted model) .*:UserWarning"),
]
SMALL = {"min_size": 96, "max_size": 128}
FEW = {"box_score_thresh": 0.0, "box_detections_per_img": 5}  # an untrained network finds nothing by itself
R_CNN = {"backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"}
# name -> (options, islands)
DETECTORS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": (SMALL, R_CNN),
    "ssdlite320_mobilenet_v3_large": ({}, {"backbone", "head"}),
    "retinanet_resnet50_fpn": (SMALL, {"backbone", "head"}),
    "fcos_resnet50_fpn": (SMALL, {"backbone", "head"}),
    "maskrcnn_resnet50_fpn": (SMALL | FEW, R_CNN | {"roi_heads.mask_head", "roi_heads.mask_predictor"}),
    "keypointrcnn_resnet50_fpn": (SMALL | FEW, R_CNN | {"roi_heads.keypoint_head", "roi_heads.keypoint_predictor"}),
}


def images(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, 96, 128, generator=generator), torch.rand(3, 96, 128, generator=generator)]


def with_statistics(model: nn.Module, inputs: Any) -> nn.Module:
    """Give the batch norms, frozen ones too, the statistics of their inputs, so that signals neither grow nor die."""

    def take(norm: Any, args: tuple[Tensor, ...]) -> None:
        norm.running_mean.copy_(args[0].mean((0, 2, 3)))
        norm.running_var.copy_(args[0].var((0, 2, 3), unbiased=False).clamp(min=1e-2))

    norms = [module for module in model.modules() if hasattr(module, "running_var")]
    handles = [norm.register_forward_pre_hook(take) for norm in norms]
    with torch.no_grad():
        model.eval()(inputs)
    for handle in handles:
        handle.remove()
    return model


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_is_quantized_as_islands(name: str, tmp_path: Path) -> None:
    options, islands = DETECTORS[name]
    torch.manual_seed(0)
    model = with_statistics(getattr(detection, name)(weights=None, weights_backbone=None, **options), images(0))
    prepared = fxq.prepare(model, (images(0),), untraceable="islands")
    fxq.calibrate(prepared, [(images(seed),) for seed in range(3)], progress=False)
    converted = fxq.convert(prepared)
    explanation = fxq.explain(converted)
    assert not explanation.coverage.in_float
    assert explanation.notes[0].startswith(f"{len(islands)} islands: ")
    with torch.no_grad():
        assert [set(found) for found in converted(images(5))] == [set(found) for found in model(images(5))]
    report = fxq.export_onnx(converted, tmp_path)
    assert set(report.islands) == islands
    assert all(one.other_batch_parity for one in report.islands.values())


def test_raft_is_one_graph() -> None:
    torch.manual_seed(0)
    model = optical_flow.raft_small(weights=None).eval()
    inputs = tuple(torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    prepared = fxq.prepare(model, inputs, untraceable="islands")
    assert not fxq.explain(prepared).notes
