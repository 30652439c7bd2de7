"""A model as it is, to come back to: when a pass fails or hurts, and after its Python ran."""

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fxq.module_tree import all_modules
from fxq.nn import TensorQuantizer

_CONTAINERS = frozenset({dict, OrderedDict, list})


class Snapshot:
    """Weights, ranges, switches, modules and graph of a model. What calibrators have seen is not part of it.

    Args:
        gm: the graph module.
        has_weights: with copies of all weights, and of the graph; without, only what belongs to quantizers.
    """

    def __init__(self, gm: GraphModule, has_weights: bool) -> None:
        self._gm = gm
        modules = all_modules(gm)
        self._attributes = [(module, dict(vars(module))) for module in modules]
        registries = [value for _, values in self._attributes for value in values.values() if isinstance(value, dict)]
        self._registries = [(registry, dict(registry)) for registry in registries]
        self._values = [
            (tensor, tensor.detach().clone())
            for module in modules
            if has_weights or isinstance(module, TensorQuantizer)
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        ]
        self._graph = copy.deepcopy(gm.graph) if has_weights else None

    def restore(self) -> None:
        """Make the model what it was. Tensors keep their identity; those that did not change are not written to."""
        graph = self._gm.graph
        _put_back(self._attributes, self._registries)
        with torch.no_grad():
            for tensor, value in self._values:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
        if self._graph is not None and (graph is not self._gm.graph or str(graph) != str(self._graph)):
            self._gm.graph = copy.deepcopy(self._graph)


@contextlib.contextmanager
def restored_state(model: nn.Module, parts: Sequence[nn.Module] | None = None) -> Iterator[Callable[[], None]]:
    """Give every module back the attributes it had, and every dict and list attribute the items it had.

    Yields what gives back attributes alone, and leaves new ones: what tracing stores for its graph is among them.

    A forward may keep what it computes (a cache of attention biases, the last shape); while tracing that would be
    proxies and fake tensors, which break the model and share their way into the traced one. No quantizer observes
    meanwhile.

    Args:
        model: the model.
        parts: its modules, where they are known.
    """
    # A TorchScript module keeps its attributes in C++, where no proxy can get in.
    modules = [one for one in parts or all_modules(model) if not isinstance(one, torch.jit.ScriptModule)]
    attributes = [(module, dict(vars(module))) for module in modules]
    containers = [value for _, values in attributes for value in values.values() if type(value) in _CONTAINERS]
    empty = [container for container in containers if not container]  # most are
    items = [(container, container.copy()) for container in containers if container]
    for module in modules:
        if isinstance(module, TensorQuantizer) and module.is_calib_enabled:
            module.disable_calib()  # what runs here is no data to calibrate on

    def put_attributes_back() -> None:
        for module, values in attributes:
            vars(module).update(values)

    try:
        yield put_attributes_back
    finally:
        _put_back(attributes, items)
        for container in empty:
            if container:
                container.clear()


@contextlib.contextmanager
def evaluated(model: nn.Module, parts: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """Put a module into eval mode and give each submodule its own mode back; ``parts``: as of restored_state."""
    modes = [(module, module.training) for module in parts or all_modules(model)]
    for module, training in modes:  # not by eval(): one of the model's own may do more, that of a program does nothing
        if training:
            module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training


def _put_back(attributes: list[tuple[nn.Module, dict[str, Any]]], items: list[tuple[Any, Any]]) -> None:
    """Give modules the attributes, and dicts and lists the items, that each is paired with."""
    for module, values in attributes:
        vars(module).clear()
        vars(module).update(values)
    for container, content in items:
        container.clear()
        container.extend(content) if isinstance(container, list) else container.update(content)
