"""Results of calls on fake tensors, kept: equal layers on equal shapes are evaluated once.

A fake evaluation runs the decomposition of an operator in Python, which takes milliseconds for a batch norm or a linear
layer, and depends on nothing but the options and the shape, stride, dtype and device of each tensor. What may depend on
more, or on data, is evaluated each time; so is what returns memory of its inputs, since the tracer has to see that it
is the same.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

_PLAIN = (int, float, complex, bool, str, type(None), type(...), torch.dtype, torch.device, torch.memory_format)
# Where functions are from that keep nothing between calls; methods of tensors name no module.
_STATELESS = frozenset({"None", "torch", "_operator"})


class _Unknown(Exception):
    """A call depends on something that a key does not hold."""


class KnownResults:
    """Calls modules and functions on fake tensors, and remembers what came out."""

    def __init__(self) -> None:
        self._results: dict[Hashable, tuple[list[Any], pytree.TreeSpec]] = {}

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return ``function(*args, **kwargs)``: new tensors, from memory where an equal call is known."""
        try:
            key = _key(function, args, kwargs)
        except _Unknown:
            return function(*args, **kwargs)
        if key in self._results:
            facts, structure = self._results[key]
            return pytree.tree_unflatten([None if fact is None else _new(*fact) for fact in facts], structure)
        result = function(*args, **kwargs)
        leaves, structure = pytree.tree_flatten(result)
        if _are_new(leaves, beside=pytree.tree_leaves((args, kwargs))):
            self._results[key] = [None if leaf is None else _facts(leaf) for leaf in leaves], structure
        return result


def _key(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    seen: dict[int, int] = {}
    found = _callee(function), _described((args, kwargs), seen)
    if not seen:
        raise _Unknown  # what makes a tensor of no tensor asks torch for its default dtype and device
    return found


def _callee(function: Any) -> Hashable:
    """Return a function of torch itself, or class, options and stored tensors of a module of torch.nn."""
    if not isinstance(function, nn.Module):
        if str(getattr(function, "__module__", None)).partition(".")[0] not in _STATELESS:
            raise _Unknown
        return function  # type: ignore[no-any-return]
    kind, state = type(function), vars(function)
    if not kind.__module__.startswith("torch.nn.modules.") or function._forward_hooks or function._forward_pre_hooks:
        raise _Unknown
    options = {name: value for name, value in state.items() if not name.startswith("_")}
    tensors = (*function._parameters.values(), *function._buffers.values())
    stored = tuple(None if tensor is None else _facts(tensor) for tensor in tensors)
    return kind, _described(options, {}), stored, tuple(map(_callee, function.children()))


def _described(value: Any, seen: dict[int, int]) -> Hashable:
    """Return what a result's shapes may depend on; ``seen`` numbers the tensors, since two may be one and the same."""
    if isinstance(value, tuple | list):
        return type(value), tuple(_described(item, seen) for item in value)
    if isinstance(value, dict):
        return tuple((name, _described(item, seen)) for name, item in value.items())
    if isinstance(value, slice):
        return slice, _described((value.start, value.stop, value.step), seen)
    if isinstance(value, FakeTensor) and value.constant is None:  # one with a constant has data
        return seen.setdefault(id(value), len(seen)), _facts(value)
    if isinstance(value, _PLAIN):
        return type(value), value  # 1, 1.0 and True are equal, and x * 1 is no x * 1.0
    raise _Unknown


def _facts(tensor: Tensor) -> tuple[Any, ...]:
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        raise _Unknown  # the dtype of the result depends on it
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _new(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device=device)


def _are_new(leaves: Sequence[Any], beside: Sequence[Any]) -> bool:
    """Return whether ``leaves`` are None or plain tensors without data, each in memory of its own."""
    tensors = [leaf for leaf in leaves if leaf is not None]
    if not all(isinstance(leaf, FakeTensor) and leaf.layout is torch.strided for leaf in tensors):
        return False
    inputs = {_memory(leaf) for leaf in beside if isinstance(leaf, FakeTensor)}
    made = {_memory(leaf) for leaf in tensors}
    return len(made) == len(tensors) and made.isdisjoint(inputs)


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
