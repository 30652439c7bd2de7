"""Networks for volumes, whose convolutions have no bias before a norm: onnxscript gives those one of a wrong shape."""

from pathlib import Path

import pytest
import torch
from torch import nn

import fxq
from fxq.runtimes import count_kinds, get_runtime


@pytest.mark.parametrize("first_in_float", [False, True])
def test_convolutions_without_bias_are_written_and_run(first_in_float: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(2, 4, (3, 3, 1), stride=(2, 1, 1), padding=(1, 0, 0), bias=False),
        nn.InstanceNorm3d(4),
        nn.ReLU(),
        nn.Conv3d(4, 4, 3, padding="same", dilation=(1, 2, 1), groups=2, bias=False),
        nn.InstanceNorm3d(4),
    ).eval()
    volumes = torch.randn(4, 2, 8, 9, 10)
    recipe = fxq.recipe("onnxruntime").with_rules(*[("0", None)] * first_in_float)
    converted = fxq.quantize(model, [volumes], recipe, progress=False)
    report = fxq.export_onnx(converted, tmp_path / "model.onnx")
    assert report.quality is not None
    assert report.quality.verdict == "good"
    kinds = count_kinds(get_runtime("onnxruntime").executed_ops(report.path))
    assert (kinds["QLinearConv"], kinds["Conv"]) == (2 - first_in_float, first_in_float)


def test_one_volume_without_a_batch_is_written_and_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3, bias=False)).eval()
    volume = torch.randn(2, 8, 9, 10)
    converted = fxq.quantize(model, [volume], "onnxruntime", accuracy="plain", progress=False)
    report = fxq.export_onnx(converted, tmp_path / "model.onnx", volume, dynamic_batch=False)
    assert report.quality is not None
    assert report.quality.verdict == "good"
