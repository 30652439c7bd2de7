"""All smallest modules of a model that torch.fx cannot follow, found while it is traced once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from fxq.errors import TraceError
from fxq.graph.autograd_functions import functions_traced_through
from fxq.graph.hidden_writes import refuse_hidden_writes
from fxq.graph.shape_tracer import ShapeTracer
from fxq.graph.snapshot import restored_state
from fxq.graph.trace import bound_inputs, leaf_paths, refuse_assigned_buffers
from fxq.graph.trace_failure import failed_where
from fxq.graph.type_questions import types_may_be_asked
from fxq.process_lock import PROCESS_LOCK


def untraceable_modules(
    model: nn.Module, example_inputs: tuple[Any, ...] | None, leaf_modules: Sequence[str], is_trained: bool
) -> dict[str, str]:
    """Return the smallest modules around each failure, by path, and why; what the model itself does is not among them.

    Args:
        model: as for :func:`fxq.graph.trace.trace`; it runs on the example inputs.
        example_inputs: positional inputs.
        leaf_modules: modules that stay whole anyway, as globs.
        is_trained: parameters will change.
    """
    tracer = _AroundFailures(model, leaf_paths(model, leaf_modules), *bound_inputs(model, example_inputs))
    try:
        with (
            PROCESS_LOCK,
            restored_state(model),
            types_may_be_asked(model),
            torch.no_grad(),
            functions_traced_through(is_trained),
        ):
            tracer.trace(model)
    except KeyboardInterrupt:
        raise
    except BaseException:  # of the model itself, which tells whoever traces it next
        pass
    return tracer.kept


class _AroundFailures(ShapeTracer):
    """Records a module whose forward fails as a leaf, and goes on."""

    def __init__(self, model: nn.Module, leaves: frozenset[str], *inputs: dict[str, Any]) -> None:
        super().__init__(leaves, *inputs)
        self.kept: dict[str, str] = {}
        self._model = model

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace through the module, or record it."""
        if self.is_evaluating or m not in (self.submodule_paths or {}):
            return super().call_module(m, forward, args, kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        depth, before = len(self.module_stack), len(self.graph.nodes)
        try:
            result = super().call_module(m, forward, args, kwargs)
            refuse_assigned_buffers(self._model, [(path, m)])
            refuse_hidden_writes(self._newest(before))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the model's own code runs: it may raise anything
            _, failed = failed_where(self, self._model, error)
            reason = error.reason if isinstance(error, TraceError) else f"cannot trace {failed}"
            self._forget(before, depth)
            self.kept = {other: why for other, why in self.kept.items() if not other.startswith(f"{path}.")}
            self.kept[path] = reason
            self.leaves |= {path}
            return super().call_module(m, forward, args, kwargs)
        return result

    def _newest(self, count: int) -> list[Node]:
        """Return the nodes behind the first ``count``, the last one first."""
        nodes = iter(reversed(self.graph.nodes))
        return [next(nodes) for _ in range(len(self.graph.nodes) - count)]

    def _forget(self, count: int, depth: int) -> None:
        for node in self._newest(count):
            self.graph.erase_node(node)
        while len(self.module_stack) > depth:
            self.module_stack.popitem(last=True)
