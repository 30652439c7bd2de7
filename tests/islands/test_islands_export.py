"""Each island is a file of its own, and the whole is one where torch can export the Python around them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from island_models import Detector, Gated, images, made
from torch import Tensor, nn

import fxq
from fxq.runtimes import get_runtime

UNUSED = pytest.mark.filterwarnings("ignore:'predictor.unused' never runs:UserWarning")
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Asks(nn.Module):
    """Its Python is one that torch.fx misreads, and torch.export does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(self.last[:1](y) + y) if (x.shape[0] > 0) is True else y[:, :4]


def converted(model: nn.Module, batches: list[Any], recipe: str = "onnxruntime") -> Any:
    prepared = fxq.prepare(model, batches[0], recipe, untraceable="islands")
    fxq.calibrate(prepared, batches, progress=False)
    return fxq.convert(prepared)


@UNUSED
def test_each_island_is_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = made(Detector)
    whole = converted(model, [(images(seed),) for seed in range(4)])
    report = fxq.export_onnx(whole, tmp_path / "files")
    assert capfd.readouterr() == ("", "")
    assert set(report.islands) == {"backbone", "rpn.head", "box_head", "predictor.boxes"}
    assert {path.name for path in (tmp_path / "files").iterdir()} == {f"{name}.onnx" for name in report.islands}
    assert len(report.coverage.quantized) == 7
    (note,) = report.notes
    assert note.startswith("the whole is no file, for its Python does not export: ")
    assert len(note) < 500
    assert "predictor.boxes.onnx" in str(report)
    x = torch.stack(images(7))
    file = tmp_path / "files" / "backbone.onnx"
    names = [one.name for one in onnx.load(file).graph.output]
    found = dict(zip(names, get_runtime("onnxruntime").run(file, x.numpy()), strict=True))
    for name, expected in whole.model.backbone(x).items():
        assert np.abs(found[name] - expected.numpy()).max() < 0.05 * float(expected.abs().max())


@pytest.mark.parametrize("recipe", ["onnxruntime", "tensorrt"])
def test_the_whole_is_a_file_where_torch_can(tmp_path: Path, recipe: str) -> None:
    model = made(Asks)
    whole = converted(model, [X, -X], recipe)
    # With an open batch torch.export would misread it as well, which the check finds.
    (note,) = fxq.export_onnx(whole, tmp_path, dynamic_batch=True).notes
    assert "computes another 'output'" in note
    assert not (tmp_path / "whole.onnx").exists()
    report = fxq.export_onnx(whole, tmp_path, dynamic_batch=False)
    assert not report.notes
    assert report.whole is not None
    operators = [node.op_type for node in onnx.load(tmp_path / "whole.onnx").graph.node]
    assert operators.count("QuantizeLinear") == report.whole.quantize_nodes > 0
    (found,) = get_runtime("onnxruntime").run(tmp_path / "whole.onnx", -X.numpy())
    expected = whole(-X)
    assert np.abs(found - expected.numpy()).max() < 0.05 * float(expected.abs().max())


def test_a_list_of_maps_keeps_its_batch_open(tmp_path: Path) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 4, 1)

        def forward(self, levels: list[Tensor], names: dict[str, Tensor]) -> list[Tensor]:
            return [self.conv(level) + names["shift"] for level in levels]

    model = Head().eval()
    levels = [torch.randn(2, 8, 4, 4), torch.randn(2, 8, 2, 2)]
    inputs = (levels, {"shift": torch.randn(2, 4, 1, 1)})
    whole = fxq.quantize(model, [inputs], "onnxruntime", (inputs, {}), progress=False)
    report = fxq.export_onnx(whole, tmp_path / "head.onnx", dynamic_batch=True)
    assert report.other_batch_parity


def test_a_file_for_several_islands_is_refused(tmp_path: Path) -> None:
    model = made(Gated)
    with pytest.raises(fxq.ExportError, match=r"each of the 2 islands of the model becomes a file, so name a folder"):
        fxq.export_onnx(converted(model, [X]), tmp_path / "model.onnx")
    with pytest.raises(fxq.ExportError, match="cannot make the folder"):
        fxq.export_onnx(converted(model, [X]), tmp_path / "missing" / "folder")


def test_an_island_that_is_no_file_is_named(tmp_path: Path) -> None:
    class Rooted(Gated):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Sequential(nn.Linear(8, 8), Inverse())

    class Inverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x @ self.weight)

    model = made(Rooted)
    with pytest.raises(fxq.ExportError, match=r"the island 'last': .*\(written: first\)"):
        fxq.export_onnx(converted(model, [X]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["first.onnx"]
