"""Functions with a gradient of their own (``torch.autograd.Function``), followed into their forward.

``apply`` is C++ and takes a proxy, which looks like a tensor, for one: that ends the process.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.fx.proxy import TraceError

from fxq.graph.shape_proxy import has_proxy


@contextlib.contextmanager
def functions_traced_through(is_trained: bool) -> Iterator[None]:
    """Let ``apply`` of proxies run the forward; refuse it in training, where the gradients would be others.

    Raises:
        TraceError: inside, by such a call of a model that will be trained.
    """
    original = Function.__dict__["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if not has_proxy(args) and not has_proxy(kwargs):
            return original.__get__(None, cls)(*args, **kwargs)
        if is_trained:
            raise TraceError(f"{cls.__name__}.apply has a gradient of its own, which a graph of its forward would lose")
        if cls.setup_context is not torch.autograd.function._SingleLevelFunction.setup_context:
            return cls.forward(*args, **kwargs)
        context: Any = FunctionCtx()
        context.needs_input_grad = (False,) * len(args)
        return cls.forward(context, *args, **kwargs)

    Function.apply = classmethod(apply)
    try:
        yield
    finally:
        Function.apply = original
