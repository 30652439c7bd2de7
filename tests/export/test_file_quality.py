"""The file itself is compared with the float model, as ONNX Runtime's users run it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.small import images, residual
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.runtimes import get_runtime

DATA = images(32)
SHOWN = torch.cat([batch[:4] for batch in DATA.split(8)])


def quantized(model: nn.Module) -> GraphModule:
    return fxq.quantize(model, DATA.split(8), progress=False, accuracy="plain")


def db(want: Tensor, have: np.ndarray) -> float:
    first, second = want.double().numpy(), have.astype(np.float64)
    return float(10 * np.log10((first**2).sum() / ((first - second) ** 2).sum()))


@pytest.mark.parametrize("dynamic", [True, False])
def test_the_report_has_what_onnxruntime_makes_of_the_samples(tmp_path: Path, dynamic: bool) -> None:
    model = residual()
    report = fxq.export_onnx(quantized(model), tmp_path / "model.onnx", dynamic_batch=dynamic)
    assert report.quality is not None
    # A static batch is that of the example inputs, two samples, and four runs tell enough.
    samples = SHOWN if dynamic else SHOWN[:8]
    parts = [samples] if dynamic else samples.split(2)
    found = np.concatenate([get_runtime("onnxruntime").run(report.path, part.numpy())[0] for part in parts])
    with torch.no_grad():
        want = model(samples)
    assert report.quality.samples == len(samples)
    assert report.quality.sqnr_db == pytest.approx(db(want, found), abs=0.01)
    assert report.quality.against == "the original model"
    assert "against the original model" in str(report)
    assert "3 of 3 convolutions and linear layers in int8" in str(report)


def test_a_file_that_is_too_far_off_is_not_written_if_strict(tmp_path: Path) -> None:
    converted, path = quantized(residual()), tmp_path / "model.onnx"
    with pytest.raises(fxq.AccuracyError, match="the file in ONNX Runtime is far from the original model"):
        fxq.export_onnx(converted, path, min_sqnr_db=80, strict=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.warns(UserWarning, match="the least asked for is 80 dB"):
        fxq.export_onnx(converted, path, min_sqnr_db=80)
    assert path.exists()


def test_samples_of_another_size_are_not_compared_on(tmp_path: Path) -> None:
    converted = quantized(residual())
    report = fxq.export_onnx(converted, tmp_path / "model.onnx", example_inputs=torch.randn(2, 1, 12, 12))
    assert report.quality is None
