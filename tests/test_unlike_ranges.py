"""Tensors in unlike units that share a range: what is small beside the others is lost, and their user is told."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.runtimes import get_runtime

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Detector(nn.Module):
    """Boxes in pixels and scores from 0 to 1, joined for what reads them."""

    def __init__(self, reader: nn.Module, pixels: float = 640.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.boxes, self.scores, self.reader = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 3, 1), reader
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(torch.cat((self.boxes(x).sigmoid() * self.pixels, self.scores(x).sigmoid()), 1))


@pytest.mark.parametrize("recipe", ["onnxruntime", "tensorrt"])
def test_returned_scores_are_not_rounded_to_pixels(tmp_path: Path, recipe: str) -> None:
    model = Detector(nn.Flatten(2)).eval()
    path = fxq.export_onnx(fxq.quantize(model, [X], recipe, (X,), progress=False), tmp_path / "model.onnx").path
    (found,) = get_runtime("onnxruntime", threads=1).run(path, [X.numpy()])
    with torch.no_grad():
        scores = model(X)[:, 4:]
    # Two 8-bit steps of what goes into a sigmoid whose slope is at most a quarter, and one of what comes out.
    torch.testing.assert_close(torch.from_numpy(found)[:, 4:], scores, rtol=0, atol=0.02)


@pytest.mark.parametrize("reader", [(), (nn.ReLU(), nn.MaxPool2d(2))], ids=["directly", "behind others"])
@pytest.mark.parametrize("recipe", ["onnxruntime", "tensorrt", "openvino"])
def test_a_range_that_swallows_a_member_is_told_with_the_rules_to_write(
    recipe: str, reader: tuple[nn.Module, ...]
) -> None:
    model = Detector(nn.Sequential(*reader, nn.Conv2d(7, 4, 1))).eval()
    gm = fxq.prepare(model, X, recipe)
    with pytest.warns(UserWarning, match=r"'sigmoid_1' has 0\.\d+ steps") as caught:
        report = fxq.calibrate(gm, [X, X / 2], progress=False)
    assert len(caught) == 1
    assert all(f'("{name}", None)' in str(caught[0].message) for name in report.crowded_ranges)
    # The rules that it names are enough.
    gm = fxq.prepare(model, X, fxq.recipe(recipe).with_rules(*((name, None) for name in report.crowded_ranges)))
    assert fxq.calibrate(gm, [X], progress=False).crowded_ranges == {}


@pytest.mark.parametrize("recipe", ["onnxruntime", "tensorrt"])
def test_ranges_that_are_somewhat_unlike_share_one(recipe: str) -> None:
    gm = fxq.prepare(Detector(nn.Conv2d(7, 4, 1), pixels=10.0).eval(), X, recipe)
    assert fxq.calibrate(gm, [X], progress=False).crowded_ranges == {}
