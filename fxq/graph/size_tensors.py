"""Tensors of sizes, item by item: ``torch.tensor(x.shape)``, cut, joined and computed with, as what was ONNX does.

torch would read the sizes as numbers where such a tensor is a shape again, and the graph would work for these sizes
only. Here each item is computed by itself, so that a size that is passed on stays a node.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from fxq.graph.memory import overwriting
from fxq.graph.stored_values import UnsettledError

_MOST_ITEMS = 64  # a shape has few


class _Unknown(Exception):
    """A tensor holds more than sizes, or is computed in a way that is not among these."""


def sizes_in(node: Node, tracer: Any) -> Any:
    """Return the items of an integer tensor, as a number or nested lists: numbers, and proxies for sizes.

    None where there is more in it than sizes and what is stored.
    """
    try:
        return _value(node, tracer, {}).tolist()
    except (_Unknown, UnsettledError):
        return None


def _value(node: Node, tracer: Any, known: dict[Node, Any]) -> Any:
    """Return the items as an array of objects."""
    if node not in known:
        value = node.meta.get("val")
        if isinstance(value, int):
            known[node] = _array(tracer.proxy(node))
        elif isinstance(value, torch.Size):
            known[node] = _made(list(tracer.proxy(node)))
        elif not isinstance(value, Tensor) or value.is_complex() or value.numel() > _MOST_ITEMS:
            raise _Unknown
        elif node in tracer.numbers.stored:
            known[node] = np.array(tracer.numbers.value_of_stored(node).tolist(), dtype=object)
        else:
            known[node] = _array(_computed(node, tracer, known))
    return known[node]


def _computed(node: Node, tracer: Any, known: dict[Node, Any]) -> Any:
    function = _FUNCTIONS.get(node.target)
    has_fractions = node.meta["val"].is_floating_point()
    # float32 rounds otherwise than the numbers of Python.
    if function is None or overwriting(node) is not None or (has_fractions and node.target not in _MOVING):
        raise _Unknown
    arguments: Any = (node.args, node.kwargs)
    args, kwargs = map_arg(arguments, lambda source: _Box(_value(source, tracer, known)))  # type: ignore[arg-type,return-value]  # any object will do
    if function is _converted:
        return _converted(args[0].value, node.all_input_nodes[0].meta["val"], has_fractions)
    try:
        return function(*map(_opened, args), **{name: _opened(value) for name, value in kwargs.items()})
    except (TypeError, ValueError, IndexError) as error:  # it takes arguments that are not among these
        raise _Unknown from error


class _Box:
    """Holds what stands for a node, into which torch.fx would look."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _opened(argument: Any) -> Any:
    if isinstance(argument, _Box):
        return argument.value
    if isinstance(argument, slice):
        return slice(*map(_opened, (argument.start, argument.stop, argument.step)))
    return [*map(_opened, argument)] if isinstance(argument, tuple | list) else argument


def _array(value: Any) -> Any:
    """Return an array as it is, and anything else as the one item of an array: numpy would look into a proxy."""
    if isinstance(value, np.ndarray):
        return value
    found = np.empty((), dtype=object)
    found[()] = value
    return found


def _made(data: Any, **_: Any) -> Any:
    return np.stack([*map(_array, data)]) if isinstance(data, list) else data


def _converted(data: Any, source: Tensor, has_fractions: bool) -> Any:
    if source.is_floating_point() and not has_fractions:
        raise _Unknown
    return _by_item(operator.mul)(data, 1.0) if has_fractions and not source.is_floating_point() else data


def _item(data: Any, index: Any) -> Any:
    return data[tuple(map(_index, index)) if isinstance(index, list) else _index(index)]


def _index(value: Any) -> Any:
    if isinstance(value, slice):
        return slice(*map(_index, (value.start, value.stop, value.step)))
    return value.astype(int)[()] if isinstance(value, np.ndarray) else value


def _joined(tensors: Any, dim: int = 0) -> Any:
    return np.concatenate(tensors, dim)


def _stacked(tensors: Any, dim: int = 0) -> Any:
    return np.stack(tensors, dim)


def _unsqueezed(data: Any, dim: int) -> Any:
    return np.expand_dims(data, dim)


def _squeezed(data: Any, dim: int | None = None) -> Any:
    return np.squeeze(data, dim)


def _reshaped(data: Any, *shape: Any) -> Any:
    return np.reshape(data, shape[0] if len(shape) == 1 else shape)


def _selected(data: Any, dim: int, index: Any) -> Any:
    return np.take(data, _index(index), dim)


def _by_item(function: Callable[..., Any]) -> Callable[..., Any]:
    over_items = np.frompyfunc(function, 1 if function is operator.neg else 2, 1)
    return lambda *operands: over_items(*map(_array, operands))


def _product(data: Any) -> Any:
    return functools.reduce(operator.mul, data.ravel().tolist(), 1)


def _asked(decide: Callable[[Iterable[bool]], bool]) -> Callable[..., Any]:
    return lambda data: decide(bool(one) for one in data.ravel().tolist())


def _all_forms(named: Mapping[str, Callable[..., Any]]) -> Mapping[Any, Callable[..., Any]]:
    """Return what computes on arrays as functions and methods of these names do on tensors."""
    found: dict[Any, Callable[..., Any]] = {}
    for name, function in named.items():
        found |= {name: function, getattr(torch, name, name): function, getattr(operator, name, name): function}
    return MappingProxyType(found)


_MOVING = _all_forms({
    "tensor": _made, "as_tensor": _made, "getitem": _item, "cat": _joined, "concat": _joined, "stack": _stacked,
    "unsqueeze": _unsqueezed, "squeeze": _squeezed, "index_select": _selected,
    "reshape": _reshaped, "view": _reshaped,
    **dict.fromkeys(("to", "type", "long", "int", "float", "clone", "detach", "cpu", "contiguous"), _converted),
})  # fmt: skip
_COMPUTING = _all_forms({
    "prod": _product, "any": _asked(any), "all": _asked(all), "floordiv": _by_item(operator.floordiv),
    "floor_divide": _by_item(operator.floordiv),
    **{name: _by_item(getattr(operator, name)) for name in ("add", "sub", "mul", "neg")},
    **{name: _by_item(getattr(operator, name)) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
})  # fmt: skip
_FUNCTIONS: Mapping[Any, Callable[..., Any]] = MappingProxyType({**_MOVING, **_COMPUTING})
