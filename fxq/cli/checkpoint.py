"""Read a file of weights, and take the weights out of what a training script saved beside them. Nothing is run."""

import argparse
import collections
import json
import logging
import pathlib
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fxq.errors import ModelError

# Where training scripts put the weights among optimizer states and epoch numbers. Averages over the last steps come
# first: they are what is deployed.
_AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_INDEX = ".safetensors.index.json"
_SAVE = "torch.save(model.state_dict(), path)"
_MOST_SHOWN = 5

logger = logging.getLogger(__name__)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of a file by name.

    Args:
        path: .safetensors, an index of several (.safetensors.index.json), or a file of ``torch.save`` with tensors and
            plain data, such as options of the training. Weights may lie under "state_dict", "model_state_dict" or
            "model"; of a moving average ("model_ema", "state_dict_ema", "ema"), that is taken, and logged.

    Raises:
        ModelError: it cannot be read, holds objects that only running its code would make, or no weights.
    """
    loaded = _read(path)
    weights = _unwrap(loaded, path)
    if weights is None:
        raise ModelError(f"{path} holds no weights by name ({_kind(loaded)}): write it with {_SAVE}")
    unnamed = [repr(key) for key in weights if not isinstance(key, str)]
    if unnamed:
        raise ModelError(f"{path} holds weights whose names are no texts ({listing(unnamed)}): write it with {_SAVE}")
    return dict(weights)


def listing(keys: Iterable[str]) -> str:
    """Return the first few of them, and how many more there are."""
    keys = list(keys)
    more = f" and {len(keys) - _MOST_SHOWN} more" if len(keys) > _MOST_SHOWN else ""
    return ", ".join(keys[:_MOST_SHOWN]) + more


def _read(path: Path) -> Any:
    if not path.is_file():
        what = "is a folder: name the file of weights in it" if path.is_dir() else ""
        raise ModelError(f"{path} {what}" if what else f"there is no file of weights {path}")
    try:
        if path.name.endswith(_INDEX):
            return _read_shards(path)
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(_plain_data()):
            return _load(path)
    except ModelError:
        raise
    except Exception as error:  # a broken file breaks its readers in any way
        reason = f"{type(error).__name__}: {error}".strip(": ")
        raise ModelError(f"{path} cannot be read as weights, it is damaged or no such file: {reason}") from error


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = _unsafe_names(path, str(error))
        raise ModelError(
            f"{path} is no file of weights, or holds more than tensors{f' ({listing(names)})' if names else ''}, which "
            "fxq does not unpickle, for that runs code that the file names: load it where it was made, and write the "
            f"weights alone with {_SAVE}"
        ) from error


def _unsafe_names(path: Path, reason: str) -> list[str]:
    """Return what a file of torch.save names that is no plain data."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # only files of today are read so, and whole ones
        return re.findall(r"GLOBAL (\S+) was not an allowed", reason)


def _plain_data() -> list[Any]:
    """Return what may be made of a file beside tensors, as ``safe_globals`` takes it: data without behaviour.

    Under the names that other versions of Python and numpy write, too; paths become pure ones, of either system.
    """
    numbers = {type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"}
    made: list[Any] = [argparse.Namespace, bool, int, float, str, list, dict, tuple, slice, range]
    made += [np.ndarray, np.dtype, *numbers]
    made.append((_plain_dict, "collections.defaultdict"))  # torch fills no dict of another class
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        made.append((np.float64(0).__reduce__()[0], f"{module}.scalar"))
        made.append((np.zeros(0).__reduce__()[0], f"{module}._reconstruct"))
    for module in ("pathlib", "pathlib._local"):
        for system in ("PosixPath", "WindowsPath"):
            pure = getattr(pathlib, f"Pure{system}")
            made += [(pure, f"{module}.{system}"), (pure, f"{module}.Pure{system}")]
    return made


def _plain_dict(_default: Any = None) -> dict[Any, Any]:
    return {}


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Return the weights of all files that an index names, each from the file that it is said to be in."""
    loaded = json.loads(index.read_text(encoding="utf-8"))
    files = loaded.get("weight_map") if isinstance(loaded, dict) else None
    if not (isinstance(files, dict) and files and all(isinstance(name, str) for name in files.values())):
        raise ModelError(f'{index} is no index of weights: it has no "weight_map" of names and files')
    keys_of = collections.defaultdict(list)
    for key, name in files.items():
        keys_of[name].append(key)
    outside = [name for name in keys_of if Path(name).name != name or Path(name).suffix != ".safetensors"]
    if outside:
        raise ModelError(f"{index} names {outside[0]!r}, which is no .safetensors file beside it")
    absent = [name for name in keys_of if not (index.parent / name).is_file()]
    if absent:
        raise ModelError(f"{index} names {len(keys_of)} files, and beside it {listing(absent)} is not there")
    weights: dict[str, Tensor] = {}
    for name, keys in keys_of.items():
        with safetensors.safe_open(index.parent / name, framework="pt") as shard:
            there = set(shard.keys())
            if lost := [key for key in keys if key not in there]:
                raise ModelError(f"{index} says that {listing(lost)} is in {name}, where it is not")
            weights |= {key: shard.get_tensor(key) for key in keys}
    return weights


def _unwrap(loaded: Any, path: Path, depth: int = 4) -> Any:
    """Return the weights within what a training script saved; None where there are none, or several."""
    if not isinstance(loaded, Mapping) or not depth:
        return None
    if _is_weights(loaded):
        return loaded
    found = {name: _unwrap(loaded.get(name), path, depth - 1) for name in (*_AVERAGES, *_WRAPPERS)}
    names = [name for name, weights in found.items() if weights is not None]
    if not names:  # under a name of their own
        alone = [name for name, value in loaded.items() if _is_weights(value)]
        if len(alone) != 1:
            return None
        logger.info("%s: the weights are those under %r", path, alone[0])
        return loaded[alone[0]]
    taken, *others = names
    if taken in _AVERAGES:
        left = f", not those under {listing(map(repr, others))}; to have these, save them alone" if others else ""
        logger.info("%s: the weights are those of the moving average under %r%s", path, taken, left)
    return found[taken]


def _is_weights(loaded: Any) -> bool:
    return isinstance(loaded, Mapping) and bool(loaded) and all(isinstance(one, Tensor) for one in loaded.values())


def _kind(loaded: Any) -> str:
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    return f"a dict of {listing(map(str, loaded))}" if loaded else "an empty dict"
