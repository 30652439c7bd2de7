"""What a caller may have switched on around a call of fxq, and what must not show in the result."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch
from torch.fx._symbolic_trace import _wrapped_fns_to_patch

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
_DEVICES = ("cpu", "cuda", "xpu", "mps", "hpu")


def in_plain_surroundings(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Call ``function`` without ``torch.autocast`` and ``torch.inference_mode`` around it.

    Autocast would round what is observed and compared, and put casts in the graph; tensors made in inference mode could
    not be trained later.
    """

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with contextlib.ExitStack() as stack:
            for device in _DEVICES:
                if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch_as_before())
            return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def torch_as_before() -> Iterator[None]:
    """Take back what the generated code of graphs registers with torch.fx, which would stay for the whole process.

    Code that calls a function behind ``torch.fx.wrap`` wraps it again wherever it is generated, so that a pickled
    graph can be traced again; nothing else needs that.
    """
    before = set(_wrapped_fns_to_patch)
    try:
        yield
    finally:
        for key, names in list(_wrapped_fns_to_patch.items()):
            if key not in before and "__name__" not in names:  # what a file wraps that was imported meanwhile stays
                del _wrapped_fns_to_patch[key]
