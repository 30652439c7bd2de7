"""What a node computes for the example inputs: on fake tensors, which have a shape and a dtype and no data."""

import contextlib
import logging
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map_only

from fxq.graph.known_results import KnownResults
from fxq.graph.recurrent_results import recurrent_result
from fxq.graph.snapshot import evaluated

# What a fake tensor cannot tell: the shape of nonzero(x), the number in x.item(), an operator without a shape rule.
_NOT_KNOWABLE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

_FAKE_LOGGER = logging.getLogger("torch._subclasses.fake_tensor")


class Evaluation:
    """Computes ``meta["val"]`` of the nodes of one graph."""

    def __init__(self) -> None:
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._known = KnownResults()

    def as_fake(self, value: Any) -> Any:
        """Return ``value`` with fake tensors in place of tensors."""
        return tree_map_only(Tensor, self._fake.from_tensor, value)

    def evaluate(self, node: Node, root: nn.Module, is_kept: bool = False) -> None:
        """Give ``node`` its value, where those of its inputs are known and fake tensors can tell.

        ``is_kept``: it is a module that is kept whole by its name, since it does not trace: whatever running it on them
        raises, says only that they cannot. Other modules run in eval mode.
        """
        if all("val" in producer.meta for producer in node.all_input_nodes):
            unknown = contextlib.suppress(*(Exception,) if is_kept else _NOT_KNOWABLE)
            with unknown, _unlogged(), self._fake, torch.no_grad():
                node.meta["val"] = self._value(node, root, is_kept)

    def _value(self, node: Node, root: nn.Module, is_kept: bool) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), lambda producer: producer.meta["val"])
        match node.op:
            case "get_attr":
                value = _attribute(root, str(node.target))
                return self._fake.from_tensor(value) if isinstance(value, Tensor) else value
            case "call_module":
                module = _attribute(root, str(node.target))
                known = recurrent_result(module, args, kwargs)
                if known is not None:
                    return known
                # Batch norm refuses to train on one sample. What is kept by name may return something else in training.
                with contextlib.nullcontext() if is_kept else evaluated(module):
                    return self._known.call(module, args, kwargs)
            case "call_method" if isinstance(args[0], Tensor):
                return self._known.call(getattr(type(args[0]), str(node.target)), args, kwargs)
            case "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            case "output":
                return args[0]
            case "call_function" if node.target is operator.getitem and isinstance(args[0], tuple | list | dict):
                container: Any = args[0]  # a key of the call would hold all of it, each time
                return container[args[1]]
        assert callable(node.target)
        return self._known.call(node.target, args, kwargs)


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keep torch from logging the traceback of what fails: it is raised too, and told by whoever catches it."""
    before, _FAKE_LOGGER.disabled = _FAKE_LOGGER.disabled, True
    try:
        yield
    finally:
        _FAKE_LOGGER.disabled = before


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value
