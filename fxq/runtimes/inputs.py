"""The inputs of a file: in its order or by name, checked before a runtime sees them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fxq.errors import InputError

# An array is whatever numpy takes for one, a tensor in the CPU's memory among them.
Inputs = np.ndarray | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class FileInput:
    """An input as the file declares it; a size is a name or None where it is open."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        sizes = ("?" if size is None else str(size) for size in self.shape)
        return f"{self.name!r}, {self.dtype} ({', '.join(sizes)})"


def arrays_by_name(expected: Sequence[FileInput], inputs: Inputs) -> dict[str, np.ndarray]:
    """Return an array for each input of a file.

    Raises:
        InputError: one is missing, unknown, or of another dtype or shape; the message lists what the file wants.
    """
    given = _named(expected, inputs)
    names = {found.name for found in expected}
    if set(given) != names:
        missing, unknown = sorted(names - set(given)), sorted(set(given) - names)
        parts = (f"no {', '.join(missing)}" if missing else "", f"unknown {', '.join(unknown)}" if unknown else "")
        raise InputError(f"the inputs do not fit the file: {' and '.join(filter(None, parts))}; {_wanted(expected)}")
    return {found.name: _checked(found, given[found.name]) for found in expected}


def _named(expected: Sequence[FileInput], inputs: Inputs) -> dict[str, Any]:
    if isinstance(inputs, Mapping):
        return dict(inputs)
    values = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    if len(values) != len(expected):
        raise InputError(f"got {len(values)} inputs; {_wanted(expected)}")
    return {found.name: value for found, value in zip(expected, values, strict=True)}


def _checked(expected: FileInput, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # torch's: on another device, or waiting for a gradient
        raise InputError(f"input {expected.name!r} is no array: {error}") from error
    fits = len(array.shape) == len(expected.shape) and all(
        have == want or not isinstance(want, int) for have, want in zip(array.shape, expected.shape, strict=True)
    )
    # An empty shape stands for a scalar or for nothing known: then the runtime decides.
    if str(array.dtype) != expected.dtype or (expected.shape and not fits):
        sizes = ", ".join(map(str, array.shape))
        raise InputError(f"the file wants the input {expected}; got {array.dtype} ({sizes})")
    return array


def _wanted(expected: Sequence[FileInput]) -> str:
    return f"the file wants {len(expected)}: {'; '.join(map(str, expected))}"
