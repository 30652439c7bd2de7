"""State: the tensors that a calibrator is stored and sent as, and what is checked when they come back.

Options are tensors too: a number or a truth value has shape (), several numbers (n,), and None is an empty tensor. So
is a range of which nothing was seen.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fxq.errors import CalibrationError

OPTION = "option."


def as_tensor(value: float | tuple[int, ...] | None) -> Tensor:
    """Return an option as a tensor: bool, int64 or float64."""
    if value is None:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None, device="cpu")


def stored_options(state: Mapping[str, Tensor], names: Iterable[str], kind: str) -> dict[str, Any]:
    """Return the options that :func:`as_tensor` made tensors of, by name.

    Raises:
        CalibrationError: one of ``names`` is missing, or there are others.
    """
    stored = {name.removeprefix(OPTION): tensor for name, tensor in state.items() if name.startswith(OPTION)}
    check_names(stored, names, kind)
    return {
        name: tensor.item() if tensor.dim() == 0 else tuple(tensor.tolist()) or None for name, tensor in stored.items()
    }


def or_nothing(tensor: Tensor | None) -> Tensor:
    """Return the tensor, or an empty one for None."""
    return torch.empty(0, dtype=torch.float32, device="cpu") if tensor is None else tensor


def check_names(state: Mapping[str, Tensor], names: Iterable[str], kind: str) -> None:
    """Raise CalibrationError unless the state has these entries and no others."""
    missing, unknown = sorted(set(names) - state.keys()), sorted(state.keys() - set(names))
    if missing or unknown:
        parts = [
            f"{word} {', '.join(found)}" for word, found in (("lacks", missing), ("has unknown", unknown)) if found
        ]
        raise CalibrationError(f"the state of a {kind} {' and '.join(parts)}: pass what {kind}.state() returned")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise CalibrationError(f"{name!r} of the state of a {kind} is a {type(tensor).__name__}, no tensor")


def check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...] | None = None) -> None:
    """Raise CalibrationError unless the entry ``name`` has this dtype and, where one is given, this shape."""
    if tensor.dtype != dtype or (shape is not None and tensor.shape != torch.Size(shape)):
        expected = f"{dtype} of shape {tuple(shape)}" if shape is not None else f"{dtype}"
        raise CalibrationError(
            f"{name!r} of a calibrator's state is {tensor.dtype} of shape {tuple(tensor.shape)}, expected {expected}"
        )
