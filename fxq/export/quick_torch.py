"""Spare torch.export and torch.onnx what they do for nobody here. Where a torch lacks a switch, it is just slower."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from onnxscript.values import TracedOnnxFunction
from torch import fx
from torch.fx import config as fx_config


@contextlib.contextmanager
def quick_torch() -> Iterator[None]:
    """Trace without stack traces, graphs without Python code, and torch.onnx's translations read once.

    It changes what the process shares: enter it under PROCESS_LOCK.
    """
    with _no_stack_traces(), _translations_parsed_once(), _no_code():
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


def _no_code() -> contextlib.AbstractContextManager[None]:
    """Write the Python code of a graph when someone calls it, and not after each pass of torch over it."""
    use = getattr(getattr(fx, "_lazy_graph_module", None), "_use_lazy_graph_module", None)
    return contextlib.nullcontext() if use is None else use(True)
