"""Snapshot: a model as it is, to come back to when a pass fails or hurts."""

import copy
from typing import Any

import torch
from torch.fx import GraphModule

from fxq.nn import TensorQuantizer


class Snapshot:
    """Weights, ranges, switches, modules and graph of a model. What calibrators have seen is not part of it.

    Args:
        gm: the graph module.
        has_weights: with copies of all weights, and of the graph; without, only what belongs to quantizers.
    """

    def __init__(self, gm: GraphModule, has_weights: bool) -> None:
        self._gm = gm
        modules = list(gm.modules())
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
        for module, attributes in self._attributes:
            vars(module).clear()
            vars(module).update(attributes)
        for registry, items in self._registries:
            _refill(registry, items)
        with torch.no_grad():
            for tensor, value in self._values:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
        if self._graph is not None and (graph is not self._gm.graph or str(graph) != str(self._graph)):
            self._gm.graph = copy.deepcopy(self._graph)


def _refill(registry: dict[Any, Any], items: dict[Any, Any]) -> None:
    registry.clear()
    registry.update(items)
