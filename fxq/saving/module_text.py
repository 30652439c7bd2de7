"""Modules that passes with data put in, such as a clip with another bound: as plain data, and back.

Only classes of torch.nn and fxq.nn, found by their name there, so that a file names no code to run. A module is its
constructor's arguments, which it holds as attributes of the same name.
"""

import inspect
from typing import Any

import torch
from torch import nn

import fxq.nn
from fxq.errors import SavedModelError

_LITERALS = (bool, int, float, str, type(None))


def module_to_dict(module: nn.Module, path: str, pass_names: str) -> dict[str, Any]:
    """Return a module as plain data; its tensors are stored with the others.

    Raises:
        SavedModelError: it is of another class, or an argument of its constructor is not an attribute.
    """
    kind = type(module)
    if isinstance(module, fxq.nn.ScaledChannels):
        return {"type": _name(kind), "shape": list(module.factor.shape)}
    if _find(_name(kind)) is not kind:
        raise SavedModelError(
            f"cannot save the {kind.__name__} at {path!r}, which {pass_names} put in: only modules of torch.nn and "
            "fxq.nn are stored as data. Save before that pass, or let it put in one of these"
        )
    options = {}
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = getattr(module, parameter.name, parameter.default)
        if type(value) not in _LITERALS:
            raise SavedModelError(
                f"cannot save the {kind.__name__} at {path!r}, which {pass_names} put in: its {parameter.name!r} is "
                f"{value!r}, no number or text"
            )
        options[parameter.name] = value
    return {"type": _name(kind), "options": options}


def module_from_dict(fields: dict[str, Any]) -> nn.Module:
    """Return the module; SavedModelError for a class that this fxq or this torch does not have."""
    kind = _find(fields["type"])
    if kind is None:
        raise SavedModelError(f"the file holds a {fields['type']}, which is no module of torch.nn or fxq.nn here")
    if kind is fxq.nn.ScaledChannels:
        shape = fields["shape"] if "shape" in fields else [fields["channels"]]  # in files of before it had positions
        return kind(torch.ones(shape, device="cpu"))
    return kind(**fields["options"])


def _name(kind: type[nn.Module]) -> str:
    room = "fxq.nn" if kind.__module__.startswith("fxq.nn.") else "torch.nn"
    return f"{room}.{kind.__name__}"


def _find(name: str) -> type[nn.Module] | None:
    room, _, attribute = name.rpartition(".")
    found = getattr({"torch.nn": nn, "fxq.nn": fxq.nn}.get(room), attribute, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None
