"""Spare torch.export and torch.onnx what they do for nobody here. Where a torch lacks a switch, it is just slower."""

import contextlib
import copy
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from onnxscript.values import TracedOnnxFunction
from torch import fx
from torch.fx import config as fx_config


@contextlib.contextmanager
def quick_torch() -> Iterator[None]:
    """Trace without stack traces, graphs without Python code, and what torch knows of its operators looked up once.

    It changes what the process shares: enter it under PROCESS_LOCK.
    """
    with _no_stack_traces(), _translations_parsed_once(), _registry_built_once(), _operators_listed_once(), _no_code():
        yield


@contextlib.contextmanager
def _no_stack_traces() -> Iterator[None]:
    """Spare each traced node its stack trace, a sixth of the tracing, which names lines of torch and is dropped."""
    before = getattr(fx_config, "do_not_emit_stack_traces", None)
    if before is None:  # torch 2.11
        yield
        return
    fx_config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx_config.do_not_emit_stack_traces = before


@contextlib.contextmanager
def _translations_parsed_once() -> Iterator[None]:
    """Parse the source of torch.onnx's 500 translations once in a process.

    torch.onnx asks each for its domain in each export, 0.3 s of 0.55 s where the model is small.
    """
    translations: Any = TracedOnnxFunction
    before = vars(translations).get("function_ir")
    if not isinstance(before, property) or before.fget is None:
        yield
        return
    translations.function_ir = property(functools.partial(_parsed, before.fget))
    try:
        yield
    finally:
        translations.function_ir = before


@functools.cache
def _parsed(parse: Callable[[Any], Any], function: Any) -> Any:
    return parse(function)


@contextlib.contextmanager
def _registry_built_once() -> Iterator[None]:
    """Read the signatures of torch.onnx's translations once in a process, a third of the export of a small model."""
    registry = _internal("torch.onnx._internal.exporter._registration", "ONNXRegistry")
    before = getattr(registry, "__dict__", {}).get("from_torchlib")
    if not isinstance(before, classmethod):
        yield
        return
    registry.from_torchlib = functools.partial(_copied_registry, before.__get__(None, registry))
    try:
        yield
    finally:
        registry.from_torchlib = before


def _copied_registry(build: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return a copy that its user may add translations to."""
    found = copy.copy(_registry(build, *args, **options))
    found.functions = {target: list(metas) for target, metas in found.functions.items()}
    return found


@functools.cache
def _registry(build: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return build(*args, **options)


@contextlib.contextmanager
def _operators_listed_once() -> Iterator[None]:
    """Ask C++ for its composite operators once in an export, and not for each of thirty namespaces, each time."""
    before = _internal("torch._export.utils", "_materialize_cpp_cia_ops")
    if before is None:
        yield
        return
    owner: Any = sys.modules["torch._export.utils"]
    owner._materialize_cpp_cia_ops = functools.cache(before)
    try:
        yield
    finally:
        owner._materialize_cpp_cia_ops = before


def _internal(module: str, name: str) -> Any:
    """Return what torch keeps to itself under that name; None where this torch has it elsewhere."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def _no_code() -> contextlib.AbstractContextManager[None]:
    """Write the Python code of a graph when someone calls it, and not after each pass of torch over it."""
    use = getattr(getattr(fx, "_lazy_graph_module", None), "_use_lazy_graph_module", None)
    return contextlib.nullcontext() if use is None else use(True)
