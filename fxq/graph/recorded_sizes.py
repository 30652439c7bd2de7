"""What torch makes of sizes alone, recorded: ``torch.arange(x.shape[0])``, ``torch.Size([x.shape[0], -1])``.

Without it, torch would read the sizes as numbers, and the graph would work for these sizes only.
"""

import contextlib
import functools
import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.overrides import TorchFunctionMode

from fxq.graph.shape_proxy import (
    ShapeProxy,
    UnknownAttribute,
    has_proxy,
    is_asked_by_the_model,
    number_in,
    value_of,
)

_SIZED = ("zeros", "ones", "empty", "rand", "randn")
_MADE = (*_SIZED, "full", "randint", "randperm", "eye", "linspace", "tril_indices", "triu_indices", "broadcast_shapes")
_torch_size = torch.Size


class RecordSizes(TorchFunctionMode):
    """Records torch functions that take a size from a proxy and no tensor, such as ``torch.arange(x.shape[0])``."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Record ``func`` as a node if a proxy is among its arguments, else call it."""
        kwargs = kwargs or {}
        if has_proxy(args) or has_proxy(kwargs):
            return ShapeProxy.__torch_function__(func, types, args, kwargs)
        return func(*args, **kwargs)


@contextlib.contextmanager
def sizes_may_be_proxies() -> Iterator[None]:
    """Let torch functions take sizes from proxies, also written ``torch.zeros(x.shape[0], 3)``.

    torch reads sizes as numbers, there and in a tuple, before it asks who wants to record the call.
    """
    originals = {name: getattr(torch, name) for name in (*_MADE, "Size")}
    for name in _MADE:
        setattr(torch, name, _recorded(originals[name], is_sized=name in _SIZED))
    torch.Size = _Size  # type: ignore[misc,assignment]
    try:
        with RecordSizes():
            yield
    finally:
        for name, function in originals.items():
            setattr(torch, name, function)


def as_written(kind: type) -> type:
    """Return the class that the model's code finds under the name of ``kind`` while it is traced."""
    return torch.Size if kind is _torch_size else kind


def _recorded(function: Callable[..., Tensor], is_sized: bool) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def recorded(*args: Any, **options: Any) -> Tensor:
        if not (has_proxy(args) or has_proxy(options)):
            return function(*args, **options)
        gathered = (args,) if is_sized and len(args) > 1 else args
        return ShapeProxy.__torch_function__(function, (), gathered, options)  # type: ignore[no-any-return]

    return recorded


class _SizeOf(type):
    """Makes a class that can be used wherever ``torch.Size`` is, which reads each item as a number."""

    def __call__(cls, *arguments: Any) -> Any:
        if not has_proxy(arguments):
            return _torch_size(*arguments)
        return tuple(map(_as_size, arguments[0]))

    def __instancecheck__(cls, instance: Any) -> bool:
        if type(instance) in (ShapeProxy, UnknownAttribute) and is_asked_by_the_model(sys._getframe(1)):
            return issubclass(instance.asked_type(), _torch_size)
        return isinstance(instance, _torch_size)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _torch_size)


class _Size(metaclass=_SizeOf):
    pass


def _as_size(item: Any) -> Any:
    if isinstance(item, Proxy) and isinstance(value_of(item), Tensor):
        return number_in(item, f"a size is the tensor '{item.node}', which depends on data")
    return item if isinstance(item, Proxy) else operator.index(item)
