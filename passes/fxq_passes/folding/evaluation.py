"""Compute a part of a graph that no input of the model reaches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode

from fxq import Rewriter
from fxq.graph import overwriting
from fxq.graph.modules import deep_copy


def is_literal(node: Node) -> bool:
    """Return whether ``node`` yields a dtype or device, which is that of the traced model whatever it is asked of."""
    return node.op != "placeholder" and isinstance(node.meta.get("val"), torch.dtype | torch.device)


def evaluate(rw: Rewriter, nodes: Sequence[Node], root: Node) -> Tensor | str:
    """Return what ``root`` holds behind ``nodes``, or why it may yield something else in the next call.

    Nothing that is stored is changed.

    Args:
        rw: of the pass.
        nodes: in graph order, with all that they read, and all that writes into it.
        root: the one that is asked for.
    """
    values: dict[Node, Any] = {}
    stored: list[tuple[Tensor, int]] = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _Random() as random:  # type: ignore[no-untyped-call]
        for node in nodes:
            if node.op == "get_attr" and overwriting(node) is not None:
                return f"reads {node.target!r}, which the model changes"
            function, tensors = _function(rw, node)
            args, kwargs = map_arg((node.args, node.kwargs), values.get)
            values[node] = function(*args, **kwargs)
            stored += [(tensor, tensor._version) for tensor in tensors]
    if random.found:
        return "is random"
    if any(tensor._version != version for tensor, version in stored):
        return "changes what it is computed from"
    found: Tensor = values[root]
    return found.detach().clone()


class _Random(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether an operator asks for random numbers."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _function(rw: Rewriter, node: Node) -> tuple[Callable[..., Any], list[Tensor]]:
    """Return what ``node`` calls, on copies of what is stored, and those copies."""
    if is_literal(node):
        return lambda *_args, **_kwargs: node.meta["val"], []
    if node.op == "get_attr":
        copy = rw.tensor(node).detach().clone()
        return lambda: copy, [copy]
    if node.op == "call_module":
        module = deep_copy(rw.module(node)).eval()
        return module, [*module.parameters(), *module.buffers()]
    if node.op == "call_method":
        return lambda first, *args, **kwargs: getattr(first, str(node.target))(*args, **kwargs), []
    assert callable(node.target)
    return node.target, []
