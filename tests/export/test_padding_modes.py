"""Convolutions that pad with other than zeros: a node of its own pads, and the convolution is an integer kernel."""

from pathlib import Path

import pytest
import torch
from support.models import random_images
from torch import nn

import fxq
from fxq.runtimes import count_kinds, get_runtime


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_the_convolutions_run_on_integers(mode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(size, 4, 3, padding=1, padding_mode=mode) for size in (3, 4)]
    model = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1]).eval()
    images = random_images(4, 16)
    converted = fxq.quantize(model, [images], "onnxruntime", progress=False)
    report = fxq.export_onnx(converted, tmp_path / "model.onnx")
    assert report.quality is not None
    assert report.quality.verdict == "good"
    kinds = count_kinds(get_runtime("onnxruntime").executed_ops(report.path))
    assert (kinds["QLinearConv"], kinds["Conv"]) == (2, 0)


def test_weights_alone_are_quantized_behind_the_padding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 3, padding="same", padding_mode="replicate")).eval()
    x = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    converted = fxq.quantize(model, recipe="weight_only", example_inputs=x)
    torch.testing.assert_close(converted(x), model(x), rtol=0, atol=0.02)  # a step of a weight is 0.003
    fxq.export_onnx(converted, tmp_path / "model.onnx")
