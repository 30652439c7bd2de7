"""Calibration data from disk: a folder of images, or arrays. Read in batches, never executed (no pickle)."""

import zipfile
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fxq.cli.images import ImageOptions, image_batches
from fxq.cli.spread import evenly_spaced
from fxq.errors import ModelError

_INTEGERS = (np.int32, np.int64, np.bool_)
# A member of an .npz is as long as it says; no images or tokens are packed this well.
_LARGE, _MOST_EXPANSION = 100_000_000, 200


@dataclass(frozen=True)
class DataSource:
    """What the command line says about calibration data.

    Args:
        path: a folder of images, a .npy file of one input, or an .npz file of inputs by name.
        batch_size: samples a batch.
        num_samples: how many are used at most, evenly spaced.
        images: how images become tensors.
    """

    path: Path
    batch_size: int = 32
    num_samples: int = 512
    images: ImageOptions = field(default_factory=ImageOptions)


class Batches(Protocol):
    """Batches of known number, each a tensor or a tuple of positional inputs; iterated more than once."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Any: ...


def calibration_batches(source: DataSource, model: nn.Module) -> Batches:
    """Return the batches to calibrate ``model`` with.

    Raises:
        ModelError: the data is missing, empty, or nothing that the model takes.
    """
    if source.path.is_dir():
        return image_batches(source.path, source.images, source.batch_size, source.num_samples)
    if source.path.suffix in (".npy", ".npz"):
        return _array_batches(source, model)
    if source.path.exists():
        raise ModelError(f"calibration data is a folder of images, a .npy or an .npz file, not {source.path.name!r}")
    raise ModelError(f"there is no calibration data at {source.path}")


def _array_batches(source: DataSource, model: nn.Module) -> list[tuple[Tensor, ...]]:
    arrays = _in_order(_read(source.path), model, source.path)
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ModelError(f"{source.path}: each array holds the same number of samples, at least 1; got {counts}")
    rows = evenly_spaced(next(iter(counts.values())), source.num_samples)
    dtype = next((value.dtype for value in model.parameters() if value.is_floating_point()), torch.float32)
    tensors = [_as_tensor(array, rows, dtype, f"{source.path}: {name}") for name, array in arrays.items()]
    return list(zip(*(torch.split(tensor, source.batch_size) for tensor in tensors), strict=True))


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ModelError(f"there is no calibration data at {path}")
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                _check_expansion(file, path)
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            arrays = {"the array": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except ModelError:
        raise
    except Exception as error:  # a broken file breaks its readers in any way; what claims terabytes has no memory
        raise ModelError(f"{path} holds no plain numpy array: {type(error).__name__}: {error}") from error
    others = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
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


def _in_order(arrays: dict[str, np.ndarray], model: nn.Module, path: Path) -> dict[str, np.ndarray]:
    """Return the arrays in the order of the model's inputs; a single one is the first input, whatever its name."""
    if len(arrays) == 1:
        return arrays
    inputs = list(signature(model.forward).parameters)
    if sorted(arrays) != sorted(inputs[: len(arrays)]):
        raise ModelError(
            f"{path} has the arrays {', '.join(arrays) or 'none'}, and the model takes {', '.join(inputs)}: save one "
            "array for each input under its name, with np.savez"
        )
    return {name: arrays[name] for name in inputs[: len(arrays)]}


def _as_tensor(array: np.ndarray, rows: list[int], dtype: torch.dtype, where: str) -> Tensor:
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # torch has no other byte order
    if array.dtype in _INTEGERS:
        return torch.from_numpy(array[rows])
    if not np.issubdtype(array.dtype, np.floating):
        raise ModelError(
            f"{where} has dtype {array.dtype}; models take floating point inputs, scaled as in training (divide "
            "uint8 images by 255, subtract the mean), or int64 indices"
        )
    # A copy in float32 first: numpy has floats that torch has not (float128).
    return torch.from_numpy(array[rows].astype(np.float32)).to(dtype)
