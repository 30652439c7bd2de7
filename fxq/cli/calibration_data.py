"""Calibration data from disk: images, or arrays. Read in batches, never executed (no pickle)."""

import dataclasses
import glob
import logging
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fxq.batches import LABELS
from fxq.cli.console import is_quiet
from fxq.cli.example_inputs import float_dtype, has_default, input_names, with_defaults
from fxq.cli.images import ImageOptions, image_batches, image_files, is_image
from fxq.cli.spread import evenly_spaced
from fxq.data import Data
from fxq.errors import ModelError

_ARRAYS = (".npy", ".npz", ".pt", ".pth")
_FORMS = "calibration data is a folder of images, an image, a quoted glob of images, or a .pt, a .npy or an .npz file"
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
# A member of an .npz is as long as it says; no images or tokens are packed this well.
_LARGE, _MOST_EXPANSION = 100_000_000, 200

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSource:
    """What the command line says about calibration data.

    Args:
        path: a folder of images, one image, or a glob of images; a .npy file of one input, an .npz file of inputs by
            name, or a .pt file of either.
        batch_size: samples a batch.
        num_samples: how many are used at most, evenly spaced.
        images: how images become tensors.
        skip_bad_images: go on without images that cannot be read.
        max_samples: as of ``fxq.Data``.
    """

    path: Path
    batch_size: int = 32
    num_samples: int = 512
    images: ImageOptions = field(default_factory=ImageOptions)
    skip_bad_images: bool = False
    max_samples: int | None = None

    @property
    def is_arrays(self) -> bool:
        """Is it a file of arrays, rather than images?"""
        return self.path.suffix in _ARRAYS and not self.path.is_dir()

    def as_data(self, batches: "Batches") -> Data:
        """Return its batches, and how much of them to keep."""
        return Data(batches, max_samples=self.max_samples, progress=not is_quiet())


class Batches(Protocol):
    """Batches of known number, each a tensor or a tuple of positional inputs; iterated more than once."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Any: ...


def calibration_batches(source: DataSource, model: nn.Module, dtypes: Mapping[int, str] | None = None) -> Batches:
    """Return the batches to calibrate ``model`` with.

    Args:
        source: the data.
        model: tells the names of its inputs, and the dtype that floating point data gets.
        dtypes: of inputs, by position, where the user named them: bytes asked for are no images to scale.

    Raises:
        ModelError: the data is missing, empty, or nothing that the model takes.
    """
    if source.is_arrays:
        return _array_batches(source, model, dtypes or {})
    images = dataclasses.replace(source.images, dtype=float_dtype(model))
    return image_batches(_files(source.path), images, source.batch_size, source.num_samples, source.skip_bad_images)


def _files(path: Path) -> list[Path]:
    """Return the images that a path stands for."""
    if path.is_dir():
        return image_files(path)
    if is_image(path):
        return [path]
    if path.exists():
        raise ModelError(f"{_FORMS}, not {path.name!r}")
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise ModelError(f"there is no calibration data at {path}")
    others = [file.name for file in found if not is_image(file)]
    if others:
        raise ModelError(f"{path} matches {others[0]!r} too, and a glob names images")
    return found


def _array_batches(source: DataSource, model: nn.Module, dtypes: Mapping[int, str]) -> list[tuple[Any, ...]]:
    arrays = _read(source.path)
    places = _places(arrays, model, source.path)
    counts = {name: len(arrays[name]) if arrays[name].dim() else 0 for name in places}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ModelError(f"{source.path}: each array holds the same number of samples, at least 1; got {counts}")
    rows = evenly_spaced(next(iter(counts.values())), source.num_samples)
    images = dataclasses.replace(source.images, dtype=float_dtype(model))
    inputs = {
        place: _as_input(arrays[name][rows], images, f"{source.path}: {name}", is_raw=place in dtypes)
        for name, place in places.items()
    }
    batches = zip(*(torch.split(tensor, source.batch_size) for tensor in inputs.values()), strict=True)
    return [with_defaults(dict(zip(inputs, batch, strict=True)), model) for batch in batches]


def _read(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a file by name; a single one without a name is "the array"."""
    if not path.is_file():
        raise ModelError(f"there is no calibration data at {path}")
    try:
        loaded = _load_tensors(path) if path.suffix in (".pt", ".pth") else _load_arrays(path)
        named = loaded if isinstance(loaded, Mapping) else {"the array": loaded}
        return {str(name): _as_tensor(value, f"{path}: {name}") for name, value in named.items()}
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is no file of tensors, or holds more than tensors, which fxq does not unpickle: write it with "
            "torch.save(tensor, path), or torch.save({name: tensor}, path) for several inputs"
        ) from error
    except Exception as error:  # a broken file breaks its readers in any way; what claims terabytes has no memory
        what = "is no file of tensors" if path.suffix in (".pt", ".pth") else "holds no plain numpy array"
        raise ModelError(f"{path} {what}: {type(error).__name__}: {error}") from error


def _load_arrays(path: Path) -> Any:
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            _check_expansion(file, path)
        file.seek(0)
        loaded = np.load(file, allow_pickle=False)
        arrays = loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    others = (
        []
        if isinstance(arrays, np.ndarray)
        else [name for name, one in arrays.items() if not isinstance(one, np.ndarray)]
    )
    if others:
        raise ModelError(f"{path} holds what is no numpy array: {', '.join(others)}; write it with np.savez")
    return arrays


def _check_expansion(file: IO[bytes], path: Path) -> None:
    """Refuse a small file that would fill the memory."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            is_large = member.file_size > _LARGE
            if is_large and member.file_size > _MOST_EXPANSION * max(member.compress_size, 1):
                raise ModelError(
                    f"{path}: {member.filename} would unpack {member.compress_size} bytes to {member.file_size}, which "
                    "no data does; write it with np.savez, which packs nothing"
                )


def _load_tensors(path: Path) -> Any:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    tensors = list(loaded.values()) if isinstance(loaded, Mapping) else [loaded]
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ModelError(
            f"{path} holds a {type(loaded).__name__}: save one tensor with all samples, or a dict of one such tensor "
            "for each input under its name"
        )
    return loaded


def _as_tensor(value: Any, where: str) -> Tensor:
    if isinstance(value, Tensor):
        tensor = value.detach()
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise ModelError(f"{where} is a sparse or quantized tensor; save it dense, in float")
        return tensor
    try:
        array = np.asarray(value)
        return torch.from_numpy(
            array.astype(array.dtype.newbyteorder("="), copy=False)
        )  # torch has no other byte order
    except TypeError as error:
        # numpy has floats that torch has not (float128).
        if np.issubdtype(value.dtype, np.floating):
            return torch.from_numpy(value.astype(np.float64))
        raise ModelError(
            f"{where} has dtype {value.dtype}; models take floating point inputs, prepared as in training, or integers"
        ) from error


def _places(arrays: dict[str, Tensor], model: nn.Module, path: Path) -> dict[str, int]:
    """Return which input each array is, by position; a single one that is called otherwise is the first."""
    inputs = input_names(model)
    places = {name: inputs.index(name) for name in arrays if name in inputs}
    if len(arrays) == 1:
        return places or dict.fromkeys(arrays, 0)
    optional = LABELS.intersection(name for name in places if has_default(model, name))
    labels = [name for name in arrays if name in optional or (name in LABELS and name not in inputs)]
    if labels:
        logger.info("%s: left out, as what the outputs are compared with in training: %s", path, ", ".join(labels))
    taken = {name: place for name, place in places.items() if name not in labels}
    if not taken or len(taken) + len(labels) < len(arrays):
        raise ModelError(
            f"{path} has the arrays {', '.join(arrays) or 'none'}, and the model takes {', '.join(inputs)}: save one "
            "array for each input under its name, with np.savez"
        )
    return taken


def _as_input(tensor: Tensor, images: ImageOptions, where: str, is_raw: bool) -> Tensor:
    """Return samples as the model takes them: floats in its dtype, bytes of images scaled, other integers as they are.

    Args:
        tensor: dimension 0 counts the samples.
        images: how bytes are scaled, and the floating point dtype.
        where: for errors.
        is_raw: the user named the dtype, so that bytes are what the model wants.
    """
    if tensor.is_floating_point():
        return tensor.to(images.dtype)
    if tensor.dtype is torch.uint8 and not is_raw:
        return images.normalize(_channels_first(tensor, images, where))
    if tensor.dtype not in _INTEGERS:
        raise ModelError(f"{where} has dtype {tensor.dtype}; models take floating point inputs, or integers")
    return tensor


def _channels_first(pixels: Tensor, images: ImageOptions, where: str) -> Tensor:
    """Return bytes as (count, channels, height, width)."""
    channels = images.channels
    if pixels.dim() == 4 and channels in (pixels.shape[1], pixels.shape[3]):
        logger.info(
            "%s: bytes, taken for images as files would be: (x / 255 - mean) / std; for a model that takes bytes name "
            "the dtype, as in --input-shape %s:uint8",
            where,
            ",".join(map(str, pixels.shape)),
        )
        return pixels if pixels.shape[1] == channels else pixels.permute(0, 3, 1, 2).contiguous()
    raise ModelError(
        f"{where} has dtype uint8; models take floating point inputs, scaled as in training. Bytes are scaled where "
        f"they are images of shape (count, {channels}, height, width) or (count, height, width, {channels}), and not "
        f"{tuple(pixels.shape)}: --mean and --std of one number each are for grey images, of three for colour. For a "
        f"model that takes bytes name the dtype: --input-shape {','.join(map(str, pixels.shape))}:uint8"
    )
