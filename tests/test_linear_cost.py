"""Twice the graph costs twice the work: counted, since a clock would fail on a busy machine."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.work import work_of
from torch import Tensor, nn

import fxq
from fxq.graph.trace import trace

IMAGE = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """conv, bn, relu, conv, bn and a 1x1 convolution beside them: both sides of the add have one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(2, 2, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = (nn.BatchNorm2d(2) for _ in range(2))
        self.side, self.weight = nn.Conv2d(2, 2, 1), nn.Parameter(torch.ones(2, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.side(nn.functional.conv2d(x, self.weight)))


def chain(blocks: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(blocks))).eval()


def tracing(blocks: int) -> int:
    model = chain(blocks)
    return work_of(lambda: trace(model, (IMAGE,)))


def preparing(blocks: int) -> int:
    model = chain(blocks)
    return work_of(lambda: fxq.prepare(model, IMAGE))


def converting(blocks: int) -> int:
    prepared = fxq.prepare(chain(blocks), IMAGE)
    fxq.calibrate(prepared, [IMAGE], progress=False)
    return work_of(lambda: fxq.convert(prepared))


def calibrating(blocks: int) -> int:
    prepared = fxq.prepare(chain(blocks), IMAGE)
    return work_of(lambda: fxq.calibrate(prepared, [IMAGE], progress=False))


def exporting(blocks: int) -> int:
    """Without the check, whose runtime is not counted; most is torch.export and torch.onnx."""
    converted = fxq.quantize(chain(blocks), [IMAGE], progress=False)
    with tempfile.TemporaryDirectory() as folder:
        return work_of(lambda: fxq.export_onnx(converted, Path(folder) / "model.onnx", check=False))


@pytest.mark.filterwarnings("ignore:.* got a single value from all of the data:UserWarning")  # random weights fade
@pytest.mark.parametrize(
    "stage", [tracing, preparing, calibrating, converting, pytest.param(exporting, marks=pytest.mark.slow)]
)
def test_each_further_block_costs_the_same(stage: Callable[[int], int]) -> None:
    # Twice each: what is imported, looked up or emptied once, at any point of a long session, is no cost of a block.
    few, more, most = (min(stage(blocks), stage(blocks)) for blocks in (4, 8, 12))
    assert most - more < 1.03 * (more - few)


class Hub(nn.Module):
    """One tensor that many layers read, and what is made of it: pieces, views, a memory that many write into."""

    def __init__(self, readers: int) -> None:
        super().__init__()
        self.pieces, self.views, self.adds = (
            nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in range(readers)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x)
        pieces = torch.chunk(torch.cat([y] * len(self.pieces), 1), len(self.pieces), 1)
        found = [conv(piece) for conv, piece in zip(self.pieces, pieces, strict=True)]
        found += [conv(y.flatten(2).unsqueeze(3)).reshape(y.shape) for conv in self.views]
        z = y.clone()
        for conv in self.adds:
            z += conv(z)
        return torch.cat([z, *found], 1)


def test_each_further_reader_of_a_tensor_costs_the_same() -> None:
    def preparing_hub(readers: int) -> int:
        torch.manual_seed(0)
        model = Hub(readers).eval()
        return work_of(lambda: fxq.prepare(model, IMAGE))

    few, more, most = (min(preparing_hub(readers), preparing_hub(readers)) for readers in (8, 16, 24))
    assert most - more < 1.03 * (more - few)
