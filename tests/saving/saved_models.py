"""Models to save, which a process of its own can import too, and what that process does with a saved one."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxq

SPREAD_C = torch.tensor([1.0, 0.1, 0.2, 0.05, 6.0, 0.3, 0.2, 3.0])


class Mobile(nn.Module):
    """An inverted residual whose channels before the depthwise convolution differ: a clip of it is replaced."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm2, self.relu1, self.relu2 = nn.BatchNorm2d(width), nn.ReLU6(), nn.ReLU6()
        self.project = nn.Conv2d(width, 8, 1)
        self.up, self.down = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.norm(self.first(x)))
        x = self.project(self.relu2(self.norm2(self.depthwise(x))))
        x = x + self.down(F.relu(self.up(x)))
        return self.fc(x.mean((2, 3)))


class PostNorm(nn.Module):
    """A transformer block whose norm follows the residual: a multiplication is put in behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x))


def mobile() -> nn.Module:
    torch.manual_seed(0)
    model = Mobile()
    model.norm.weight.data = SPREAD_C.clone()
    model.depthwise.weight.data /= SPREAD_C.reshape(-1, 1, 1, 1)
    return model.eval()


def post_norm() -> nn.Module:
    torch.manual_seed(0)
    model = PostNorm()
    model.block.norm1.weight.data = SPREAD_C * 5
    model.block.linear1.weight.data /= SPREAD_C
    return model.eval()


def images(count: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def tokens(count: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, 8, generator=torch.Generator().manual_seed(seed))


MODELS: dict[str, tuple[Callable[[], nn.Module], type[nn.Module], Callable[..., Tensor]]] = {
    "mobile": (mobile, Mobile, images),
    "post_norm": (post_norm, PostNorm, tokens),
}


def calibrated(name: str, level: str = "plain") -> GraphModule:
    """Return a model calibrated in batches; none of the passes that may be undone is."""
    make, _, data = MODELS[name]
    recipe = fxq.recipe("tensorrt").with_accuracy(level)
    if level == "best":
        recipe = recipe.with_pass_options("distill", max_steps=10)
    prepared = fxq.prepare(make(), data(2), recipe)
    fxq.calibrate(prepared, fxq.Data(data().split(4), held_out=0, progress=False))
    return prepared


def use_saved(folder: Path) -> None:
    """Load a converted model and export it, a calibrated one and fit its ranges again; both into other weights."""
    fxq.export_onnx(fxq.load(folder / "mobile.fxq", Mobile()), folder / "mobile_again.onnx", check=False)
    prepared = fxq.load(folder / "post_norm.fxq", PostNorm())
    fxq.fit_ranges(prepared, "percentile", percentile=99.0)
    fxq.save(fxq.convert(prepared), folder / "refitted_again.fxq")


if __name__ == "__main__":
    use_saved(Path(sys.argv[1]))
