"""Images as calibration data, prepared as torchvision's classification models want them.

x = (crop(resize(image)) / 255 - mean) / std, resize on the shorter side, crop in the centre; so
torchvision.transforms.Resize, CenterCrop, ToTensor, Normalize, the presets of its pretrained weights.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fxq.cli.extras import import_extra
from fxq.cli.spread import evenly_spaced
from fxq.errors import ModelError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
_MOST_SHOWN = 10
_MOST_OF_IMAGES = 2.0  # as a mean or deviation of values from 0 to 1
# Modes of Pillow with more than 8 bits a channel: converting them cuts values off at 255.
_DEEP_MODES = ("I", "F")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageOptions:
    """How an image becomes a tensor (channels, size, size).

    Args:
        size: pixels of the centre crop.
        resize: pixels of the shorter side before the crop; None for 8/7 of the size, ImageNet's 256 for 224.
        mean, std: one number a channel, of values in [0, 1]; a single number makes the image grey.
        dtype: of the tensor.
    """

    size: int = 224
    resize: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ModelError(
                f"--mean and --std take one number, or three, each; got {_text(self.mean)} and {_text(self.std)}: "
                "0.5 and 0.5 for grey images, 0.5,0.5,0.5 and 0.5,0.5,0.5 for colour"
            )
        if not all(value > 0 for value in self.std):
            raise ModelError(f"--std divides, so its numbers must be positive; got {_text(self.std)}")
        if max(*map(abs, self.mean), *self.std) > _MOST_OF_IMAGES:
            mean, std = (_text(tuple(round(value / 255, 5) for value in values)) for values in (self.mean, self.std))
            raise ModelError(
                f"--mean {_text(self.mean)} and --std {_text(self.std)} look like those of 0 to 255; images "
                f"are scaled to 0 to 1 first. Write --mean {mean} --std {std}"
            )
        if self.resize is not None and self.resize < self.size:
            raise ModelError(f"--resize {self.resize} leaves no {self.size} pixels for --image-size")

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return len(self.mean)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return (pixels / 255 - mean) / std.

        Args:
            pixels: bytes of shape (count, channels, height, width).
        """
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return ((pixels.float() / 255 - mean) / std).to(self.dtype)


def image_files(folder: Path) -> list[Path]:
    """Return the images in ``folder`` and its subfolders; a ModelError if there is none."""
    files = sorted(file for file in folder.rglob("*") if is_image(file))
    if not files:
        raise ModelError(f"there is no image in {folder} ({', '.join(sorted(SUFFIXES))})")
    return files


def is_image(path: Path) -> bool:
    """Return whether the file's name is that of an image."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def image_batches(
    files: Sequence[Path], options: ImageOptions, batch_size: int, limit: int, skip_bad: bool = False
) -> DataLoader[Tensor]:
    """Return batches (batch, channels, size, size) of at most ``limit`` of the ``files``.

    Raises:
        ModelError: with ``skip_bad``, no image can be read. Without it, iterating raises it, and names all of them
            that cannot.
    """
    chosen = [files[index] for index in evenly_spaced(len(files), limit)]
    images = _Images(chosen, options)
    if skip_bad:
        images.files = _without_bad(images)
    return DataLoader(images, batch_size)


class _Images(Dataset[Tensor]):
    def __init__(self, files: list[Path], options: ImageOptions) -> None:
        self.files, self.mode, self.transform = files, "L" if options.channels == 1 else "RGB", _transform(options)
        self.pillow = import_extra("PIL.Image", "vision", "reading images")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        try:
            return self.transform(self.read(self.files[index]))
        except _UnreadableError as error:
            bad = self.bad()  # all of them at once, so that nobody repairs a folder one by one
            raise ModelError(
                f"{_listing(bad)}; repair or remove {'it' if len(bad) == 1 else 'them'}, or go on without, with "
                "--skip-bad-images"
            ) from error

    def read(self, file: Path) -> Any:
        """Return an image in the mode of all; an _UnreadableError if it is none, or would lose its bits."""
        try:
            with self.pillow.open(file) as image:
                if image.mode.startswith(_DEEP_MODES):
                    raise _UnreadableError(
                        f"{file} is no image of 8 bits: its mode is {image.mode}, whose values depend on the camera; "
                        "convert it as in training"
                    )
                return image.convert(self.mode)
        except self.pillow.UnidentifiedImageError as error:
            is_tiff = file.suffix.lower() in (".tif", ".tiff")
            hint = ", which reads TIFF of 8 or 1 bits a channel; save it as .png" if is_tiff else ""
            raise _UnreadableError(f"{file} is no readable image for Pillow{hint}") from error
        except _UnreadableError:
            raise
        except Exception as error:  # a broken file breaks Pillow in any way, and an image may be a bomb
            raise _UnreadableError(f"{file} is no readable image: {error}") from error

    def bad(self) -> list[tuple[Path, str]]:
        """Return the files that cannot be read, each with the reason."""
        found = []
        for file in self.files:
            try:
                self.read(file)
            except _UnreadableError as error:
                found.append((file, str(error)))
        return found


class _UnreadableError(Exception):
    """An image that cannot be read."""


def _without_bad(images: _Images) -> list[Path]:
    bad = images.bad()
    if len(bad) == len(images.files):
        raise ModelError(f"none of {len(bad)} images can be read: {_listing(bad)}")
    if bad:
        logger.warning("skipped %d of %d images: %s", len(bad), len(images.files), _listing(bad))
    skipped = {file for file, _ in bad}
    return [file for file in images.files if file not in skipped]


def _listing(bad: Sequence[tuple[Path, str]]) -> str:
    more = f"; and {len(bad) - _MOST_SHOWN} more" if len(bad) > _MOST_SHOWN else ""
    return "; ".join(reason for _, reason in bad[:_MOST_SHOWN]) + more


def _text(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _transform(options: ImageOptions) -> Callable[[Any], Tensor]:
    transforms = import_extra("torchvision.transforms.v2", "vision", "preparing images")
    compose: Callable[[Any], Tensor] = transforms.Compose(
        [
            transforms.Resize(options.resize or options.size * 8 // 7),
            transforms.CenterCrop(options.size),
            transforms.ToImage(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize(options.mean, options.std),
            transforms.ToDtype(options.dtype),
        ]
    )
    return compose
