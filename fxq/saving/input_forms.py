"""The form of example inputs, without their values: shapes, dtypes, and what is no tensor."""

from typing import Any

import torch
from torch import Tensor

from fxq.errors import SavedModelError

_LITERALS = (bool, int, float, str, type(None))
_CONTAINERS = {"list": list, "tuple": tuple}


def inputs_to_form(value: Any) -> Any:
    """Return what JSON can hold of inputs; a SavedModelError where they hold an object of another kind."""
    if isinstance(value, Tensor):
        return {"tensor": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    if type(value) in (list, tuple):
        return {type(value).__name__: [inputs_to_form(item) for item in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: inputs_to_form(item) for key, item in value.items()}}
    if type(value) in _LITERALS:
        return {"value": value}
    raise SavedModelError(f"example inputs hold a {type(value).__name__}, of which no form can be stored")


def inputs_of_form(form: Any) -> Any:
    """Return inputs of a form, made up: floats from 0 to 1, the same each time, and integers that are 1."""
    (kind, content), *_ = form.items()
    if kind == "tensor":
        return _made_up(getattr(torch, content), form["shape"])
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](inputs_of_form(item) for item in content)
    return {key: inputs_of_form(item) for key, item in content.items()} if kind == "dict" else content


def _made_up(dtype: torch.dtype, shape: list[int]) -> Tensor:
    if dtype.is_floating_point:
        generator = torch.Generator("cpu").manual_seed(0)
        return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype)
    return torch.ones(shape, dtype=dtype, device="cpu")
