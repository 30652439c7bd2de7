"""``type(x)`` and ``callable(x)`` for proxies. ``isinstance`` asks the proxy; these two look past it.

So while a model is traced, the files that its classes are from, and the loaded files of the same packages, see a
``type`` and a ``callable`` that answer for what a proxy stands for.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from fxq.graph.recorded_sizes import as_written
from fxq.graph.shape_proxy import ShapeProxy, type_of, value_of
from fxq.module_tree import all_modules

_builtin_type, _builtin_callable = type, callable
_NOT_THE_MODELS = frozenset({"torch", "fxq", "builtins"})


class _Asked(type):
    """Makes a class that can be used wherever ``type`` is."""

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        if len(arguments) == 1 and _builtin_type(arguments[0]) is ShapeProxy:
            return as_written(arguments[0].asked_type())
        found = _builtin_type(*arguments, **keywords)
        return found if len(arguments) > 1 else as_written(found)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _builtin_type)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _builtin_type)


class _Type(_builtin_type, metaclass=_Asked):  # type: ignore[misc,valid-type]  # mypy wants no variable as a base
    pass


def _callable(value: Any) -> bool:
    if _builtin_type(value) is ShapeProxy:
        type_of(value)  # it has to be known
        return _builtin_callable(value_of(value))
    return _builtin_callable(value)


@contextlib.contextmanager
def types_may_be_asked(model: nn.Module) -> Iterator[None]:
    """Let the model's code ask for the type of a proxy; all is as before afterwards."""
    patched: list[tuple[dict[str, Any], str]] = []
    try:
        for namespace in _namespaces(model):
            for name, answer in (("type", _Type), ("callable", _callable)):
                if name not in namespace:  # the file may have its own
                    namespace[name] = answer
                    patched.append((namespace, name))
        yield
    finally:
        for namespace, name in patched:
            del namespace[name]


def _namespaces(model: nn.Module) -> list[dict[str, Any]]:
    """Return the global variables of the files that the model is written in."""
    classes = {base for kind in {_builtin_type(module) for module in all_modules(model)} for base in kind.__mro__}
    names = {base.__module__ for base in classes}
    packages = {name.partition(".")[0] for name in names} - _NOT_THE_MODELS
    inside = tuple(f"{package}." for package in packages)  # thousands of modules may be loaded
    loaded = [name for name in list(sys.modules) if name in packages or name.startswith(inside)]
    found = (sys.modules.get(name) for name in loaded)
    own = {id(module.__dict__): module.__dict__ for module in found if module is not None}
    forwards = [getattr(base.__dict__.get("forward"), "__globals__", None) for base in classes]
    for namespace in forwards:
        if namespace is not None and namespace.get("__name__", "").partition(".")[0] not in _NOT_THE_MODELS:
            own[id(namespace)] = namespace
    return list(own.values())
