"""Runtimes that execute ONNX files, by name: what they compute, what they make of a file, and how long it takes.

>>> runtime = fxq.runtimes.get_runtime("onnxruntime", threads=1)
>>> outputs = runtime.run("model.onnx", [images])
>>> print(count_kinds(runtime.executed_ops("model.onnx")))
>>> print(runtime.latency("model.onnx", [images]))

A runtime is one file of this package with one subclass of :class:`Runtime`; it is found here by being there. The
runtime's own package is imported at the first use.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from fxq.errors import RuntimeUnavailableError
from fxq.runtimes.executed import ExecutedOp, OpTensor, OpTime, count_kinds, traffic_mb
from fxq.runtimes.inputs import Inputs
from fxq.runtimes.runtime import Runtime
from fxq.runtimes.timing import Latency, time_in_turn

__all__ = [
    "RUNTIMES",
    "ExecutedOp",
    "Inputs",
    "Latency",
    "OpTensor",
    "OpTime",
    "Runtime",
    "available",
    "count_kinds",
    "get_runtime",
    "time_in_turn",
    "traffic_mb",
]


def get_runtime(name: str, **options: Any) -> Runtime:
    """Return the runtime ``name``; its options are the fields of its class, such as ``threads``.

    Raises:
        RuntimeUnavailableError: there is no such runtime, or it has no such option.
    """
    if name not in RUNTIMES:
        close = difflib.get_close_matches(name, RUNTIMES)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(RUNTIMES)}"
        raise RuntimeUnavailableError(f"unknown runtime {name!r}; {hint}")
    known = [field.name for field in fields(RUNTIMES[name])]
    for option in options:
        if option not in known:
            raise RuntimeUnavailableError(
                f"runtime {name!r} has no option {option!r}; its options: {', '.join(known) or 'none'}"
            )
    return RUNTIMES[name](**options)


def available() -> tuple[str, ...]:
    """Return the names of the runtimes that are installed."""
    return tuple(name for name, runtime_type in RUNTIMES.items() if runtime_type.is_installed())


def _find() -> Iterator[type[Runtime]]:
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        for value in vars(module).values():
            is_defined_there = isinstance(value, type) and value.__module__ == module.__name__
            if is_defined_there and issubclass(value, Runtime) and value is not Runtime:
                yield value


# All that fxq knows, installed or not.
RUNTIMES: Mapping[str, type[Runtime]] = MappingProxyType({found.name: found for found in _find()})
