"""Small models of the kinds that do not trace: a detector, and a gate in the way."""

from typing import Any

import torch
from torch import Tensor, nn


def images(seed: int = 0, sizes: tuple[int, ...] = (16, 16)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, size, size, generator=generator) for size in sizes]


class Levels(nn.Module):
    """A pyramid: maps of several sizes, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 8
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        return {"0": x, "1": self.down(x)}


class Proposals(nn.Module):
    """Does not trace itself; its head does, which it calls once a level, by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))

    def forward(self, levels: list[Tensor]) -> Tensor:
        scores = torch.cat([self.head(input=level).flatten(1) for level in levels], 1)
        best = scores.max(1).values
        return scores[:, : int(best.shape[0]) + (2 if best.sum() > 1e9 else 1)]


class Detector(nn.Module):
    """Returns, for each image, as many boxes as there are scores above the mean."""

    def __init__(self, masks: bool = False) -> None:
        super().__init__()
        self.backbone = Levels()
        self.rpn = Proposals()
        self.box_head = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, self.backbone.out_channels))
        self.predictor = nn.ModuleDict({"boxes": nn.Linear(8, 4), "unused": nn.Linear(8, 4)})
        self.mask_head = nn.Conv2d(8, 1, 1) if masks else None

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        levels = self.backbone(torch.stack(images))
        proposals = self.rpn(list(levels.values()))
        pooled = self.box_head(levels["0"].mean((2, 3)) * self.backbone.out_channels)
        boxes = self.predictor["boxes"](pooled)
        if targets is not None:
            return {"loss": (boxes - torch.stack(targets)).square().mean() + proposals.square().mean()}
        keep = torch.nonzero(pooled > pooled.mean())[:, 0]
        found = [{"boxes": boxes[keep], "labels": keep}]
        if self.mask_head is not None:
            found[0]["masks"] = self.mask_head(levels["1"][keep[:0]])
        return found


class Gated(nn.Module):
    """Dense output, by another way where the data says so: its Python does not trace, its parts do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x) if x.sum() > -1e9 else self.last(-x)


def made(kind: type[nn.Module], *args: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(*args).eval()
