"""A folder of images as calibration data, prepared as torchvision's classification models want it.

x = (crop(resize(image)) / 255 - mean) / std, resize on the shorter side, crop in the centre; so
torchvision.transforms.Resize, CenterCrop, ToTensor, Normalize, the presets of its pretrained weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fxq.cli.models import import_extra
from fxq.cli.spread import evenly_spaced
from fxq.errors import ModelError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})


@dataclass(frozen=True)
class ImageOptions:
    """How an image becomes a tensor (channels, size, size).

    Args:
        size: pixels of the centre crop.
        resize: pixels of the shorter side before the crop; None for 8/7 of the size, ImageNet's 256 for 224.
        mean, std: one number a channel, of values in [0, 1]; a single number makes the image grey.
    """

    size: int = 224
    resize: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ModelError(f"--mean and --std take one number, or three, each; got {self.mean} and {self.std}")
        if not all(value > 0 for value in self.std):
            raise ModelError(f"--std divides, so its numbers must be positive; got {self.std}")
        if self.resize is not None and self.resize < self.size:
            raise ModelError(f"--resize {self.resize} leaves no {self.size} pixels for --image-size")


def image_batches(folder: Path, options: ImageOptions, batch_size: int, limit: int) -> DataLoader[Tensor]:
    """Return batches (batch, channels, size, size) of at most ``limit`` images in ``folder`` and its subfolders.

    Raises:
        ModelError: there is no image. Iterating raises it for an image that cannot be read.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not files:
        raise ModelError(f"there is no image in {folder} ({', '.join(sorted(_SUFFIXES))})")
    chosen = [files[index] for index in evenly_spaced(len(files), limit)]
    return DataLoader(_Images(chosen, len(options.mean), _transform(options)), batch_size)


class _Images(Dataset[Tensor]):
    def __init__(self, files: list[Path], channels: int, transform: Callable[[Any], Tensor]) -> None:
        self.files, self.mode, self.transform = files, "L" if channels == 1 else "RGB", transform
        self.pillow = import_extra("PIL.Image", "vision", "reading images")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        file = self.files[index]
        try:
            with self.pillow.open(file) as image:
                return self.transform(image.convert(self.mode))
        except Exception as error:  # a broken file breaks Pillow in any way, and an image may be a bomb
            raise ModelError(f"{file} is no readable image: {error}; repair or remove it") from error


def _transform(options: ImageOptions) -> Callable[[Any], Tensor]:
    transforms = import_extra("torchvision.transforms.v2", "vision", "preparing images")
    compose: Callable[[Any], Tensor] = transforms.Compose(
        [
            transforms.Resize(options.resize or options.size * 8 // 7),
            transforms.CenterCrop(options.size),
            transforms.ToImage(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize(options.mean, options.std),
        ]
    )
    return compose
