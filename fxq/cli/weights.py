"""Load a file of weights into a model, strictly: what does not fit is listed, never skipped."""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fxq.errors import ModelError

# Where training scripts put the weights among optimizer states and epoch numbers.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# DataParallel and DistributedDataParallel save under this name.
_PREFIX = "module."
_MOST_SHOWN = 5


def load_weights(model: nn.Module, path: Path) -> None:
    """Load ``path`` into ``model``, in place.

    Args:
        model: what the weights are for.
        path: .safetensors, or a file of ``torch.save`` that holds tensors only; its weights may lie under
            "state_dict", "model_state_dict" or "model", and their names may start with "module.".

    Raises:
        ModelError: the file cannot be read, or does not fit the model.
    """
    given = _unwrap(_read(path), path)
    expected = model.state_dict()
    _check_usable(given, expected, path)
    # Only training counts batches, and old checkpoints do not.
    missing = [key for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in expected]
    shapes = [
        f"{key} {tuple(given[key].shape)} for {tuple(value.shape)}"
        for key, value in expected.items()
        if isinstance(value, Tensor) and key in given and given[key].shape != value.shape
    ]
    problems = [
        f"{len(keys)} {what}: {_listing(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise ModelError(
            f"{path} does not fit {type(model).__name__}: {'; '.join(problems)}. Name the model that was trained; "
            "--num-classes sets the size of a torchvision or timm head"
        )
    model.load_state_dict(given, strict=False)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"there is no file of weights {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is no file of weights, or holds more than tensors, which fxq does not unpickle: write it with "
            "torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # a broken file breaks its readers in any way
        reason = f"{type(error).__name__}: {error}".strip(": ")
        raise ModelError(f"{path} cannot be read as weights, it is damaged or no such file: {reason}") from error


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    for name in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not (isinstance(loaded, Mapping) and loaded and all(isinstance(value, Tensor) for value in loaded.values())):
        raise ModelError(
            f"{path} holds no weights by name ({_kind(loaded)}): write it with torch.save(model.state_dict(), path)"
        )
    unnamed = [repr(key) for key in loaded if not isinstance(key, str)]
    if unnamed:
        raise ModelError(
            f"{path} holds weights whose names are no texts ({_listing(unnamed)}): write it with "
            "torch.save(model.state_dict(), path)"
        )
    if all(key.startswith(_PREFIX) for key in loaded):
        return {key.removeprefix(_PREFIX): value for key, value in loaded.items()}
    return dict(loaded)


def _check_usable(given: Mapping[str, Tensor], expected: Mapping[str, Any], path: Path) -> None:
    """Refuse tensors that cannot be copied into the model's, or that would be taken for other numbers than they are."""
    lazy = [key for key, value in expected.items() if is_lazy(value)]
    if lazy:
        raise ModelError(
            f"{len(lazy)} weights of the model have no shape yet ({_listing(lazy)}): run it once on an input where it "
            "is made"
        )
    unusable = [
        f"{key} ({reason})"
        for key, value in given.items()
        if key in expected and (reason := _why_not(value, expected[key]))
    ]
    if unusable:
        raise ModelError(
            f"{path} holds what are no plain weights: {_listing(unusable)}; convert them before torch.save, with "
            ".to_dense(), .dequantize() or .float()"
        )


def _why_not(given: Tensor, expected: Any) -> str:
    if given.is_meta:
        return "meta, without values"
    if given.is_quantized:
        return "quantized"
    if given.layout is not torch.strided or given.is_nested:
        return "nested" if given.is_nested else str(given.layout).removeprefix("torch.")
    if isinstance(expected, Tensor) and expected.is_floating_point() and not given.is_floating_point():
        return str(given.dtype).removeprefix("torch.")
    return ""


def _kind(loaded: Any) -> str:
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    return f"a dict of {_listing(map(str, loaded))}" if loaded else "an empty dict"


def _listing(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - _MOST_SHOWN} more" if len(keys) > _MOST_SHOWN else ""
    return ", ".join(keys[:_MOST_SHOWN]) + more
