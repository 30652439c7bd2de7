"""Both streams: the float model and the quantized one, node by node, over all kept batches in lockstep.

Memory: at any node, the tensors that a later node still reads, of both models and all kept samples; what both models
share (before the first quantizer) is held once. With ``max_samples`` samples that is at most 2 * max_samples times
what one forward of one sample holds at its widest point.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from fxq.batches import Inputs
from fxq.errors import PassError
from fxq.graph.float_model import in_float
from fxq.graph.kinds import kind, module_of
from fxq.graph.memory import writes_in_place
from fxq.nn import TensorQuantizer, WeightQuantized, computed_tensors, has_other_hooks
from fxq.nn.quantized_layer import weights_quantized_once

State = list[tuple[Tensor | TensorQuantizer, int]]
_ADDS_BIAS_LAST = frozenset({"conv", "conv_transpose", "linear"})


class Values(NamedTuple):
    """What a node computes, a value for each kept batch: in the float model, and in the quantized one."""

    float_values: list[Any]
    quantized_values: list[Any]

    @property
    def are_same(self) -> bool:
        """Have the models computed the same so far?"""
        return self.float_values is self.quantized_values

    def copy(self) -> "Values":
        """Return the same tensors in lists of their own."""
        in_float = list(self.float_values)
        return Values(in_float, in_float if self.are_same else list(self.quantized_values))


class Streams:
    """A walk over the graph in execution order.

    Args:
        gm: the graph module; its quantizers quantize as they are switched.
        inputs: the kept batches.
        weights: those of the float model, by path.
        changed: paths of the parameters that passes changed; it grows during the walk.
        only_float: leave the quantized model out: its values are the float model's.
    """

    def __init__(
        self,
        gm: GraphModule,
        inputs: Sequence[Inputs],
        weights: Mapping[str, Tensor],
        changed: Sequence[str],
        only_float: bool = False,
    ) -> None:
        self._gm, self._weights, self._changed, self._only_float = gm, weights, changed, only_float
        self._has_writers = any(writes_in_place(node) for node in gm.graph.nodes)
        self._given = [by_placeholder(gm, batch) for batch in inputs]
        self._values: dict[Node, Values] = {}
        self._passed: dict[str, str] = {}  # paths of parameters, and the node behind them

    def walk(self, nodes: Iterable[Node], pass_name: str) -> Iterator[tuple[Node, Values]]:
        """Yield the asked nodes in execution order, each with its values; recompute one that was changed meanwhile.

        Raises:
            PassError: a node is not in the graph, or a weight was changed that the streams have left behind.
        """
        asked = set(nodes)
        order = list(self._gm.graph.nodes)
        for node in asked - set(order):
            raise PassError(f"pass {pass_name!r} asks for the values of {node}, which is no node of the graph")
        dying = last_reads(order)
        for node in order:
            if not asked:
                return
            # What is read for the last time gives its memory to what is computed of it, batch by batch.
            self._values[node] = self._computed(node, last_read=() if node in asked else dying.get(node, ()))
            if node in asked:
                asked.remove(node)
                before, in_first, mark = _state(node), self._float_state(node), len(self._changed)
                bias = _bias_of(node)
                yield node, self._values[node].copy()
                self._refuse_changes_behind(self._changed[mark:], node, pass_name)
                if not _is_same_state(before, _state(node)):
                    is_known = _is_same_state(in_first, self._float_state(node))
                    in_float = self._values[node].float_values if is_known else None
                    self._values[node] = self._moved(node, before, bias, is_known) or self._computed(node, in_float)
            for path in (*parameter_paths(node), *_quantizer_paths(node)):
                self._passed.setdefault(path, node.name)
            for read in dying.get(node, ()):
                del self._values[read]

    def _computed(self, node: Node, in_first: list[Any] | None = None, last_read: Collection[Node] = ()) -> Values:
        """Return what ``node`` computes.

        Args:
            node: the node.
            in_first: what it computes in the float model, where that is known.
            last_read: those of its sources whose values are forgotten as they are read.
        """
        if node.op == "placeholder":
            return self._placeholder(node)
        sources = [self._values[source] for source in node.all_input_nodes]
        if not self._has_writers and all(source.are_same for source in sources) and self._is_float(node):
            shared = self._run(node, [source.float_values for source in sources], last_read=last_read)
            return Values(shared, shared)
        if in_first is None:
            apart = [one for one in last_read if one in self._values and not self._values[one].are_same]
            module = module_of(node) if node.op == "call_module" else torch.nn.Module()
            with in_float(module, self._weights, str(node.target) if node.op == "call_module" else ""):
                values = [source.float_values for source in sources]
                in_first = self._run(node, values, self._weights, last_read if self._only_float else apart)
        if self._only_float:
            return Values(in_first, in_first)
        return Values(in_first, self._run(node, [one.quantized_values for one in sources], last_read=last_read))

    def _moved(self, node: Node, before: State, bias: Tensor | None, is_known: bool) -> Values | None:
        """Return what a layer computes of whose state the bias alone changed, moved in place by that; else None."""
        if bias is None or not is_known or self._only_float or self._values[node].are_same:
            return None
        layer: Any = module_of(node)
        others = [one for one in before if one[0] is not layer.bias]
        if not _is_same_state(others, [one for one in _state(node) if one[0] is not layer.bias]):
            return None
        moved = (layer.bias.detach() - bias).reshape(-1, *[1] * (layer.weight.dim() - 2))
        with torch.no_grad():
            for value in self._values[node].quantized_values:
                value.add_(moved)
        return self._values[node]

    def _placeholder(self, node: Node) -> Values:
        values = [given[node.name] for given in self._given]
        if not self._has_writers:
            return Values(values, values)
        if self._only_float:
            copies = [pytree.tree_map_only(Tensor, torch.clone, value) for value in values]
            return Values(copies, copies)
        # A node writes into what it reads: neither stream may see the other's writing, nor the kept samples theirs.
        return Values(*([pytree.tree_map_only(Tensor, torch.clone, value) for value in values] for _ in range(2)))

    def _is_float(self, node: Node) -> bool:
        """Return whether ``node`` computes the same in both models, given the same."""
        if node.op == "call_module" and any(isinstance(one, TensorQuantizer) for one in module_of(node).modules()):
            return False
        return not any(path in self._changed for path in parameter_paths(node))

    def _run(
        self,
        node: Node,
        sources: list[list[Any]],
        weights: Mapping[str, Tensor] | None = None,
        last_read: Collection[Node] = (),
    ) -> list[Any]:
        """Return what ``node`` makes of its sources, batch by batch; a stored tensor is taken from ``weights``."""
        function = function_of(self._gm, node, weights or {})
        results = []
        once = weights_quantized_once(module_of(node)) if node.op == "call_module" else nullcontext()
        with torch.no_grad(), once:
            for index in range(len(self._given)):
                found = {source: values[index] for source, values in zip(node.all_input_nodes, sources, strict=True)}
                args, kwargs = map_arg((node.args, node.kwargs), found.__getitem__)
                results.append(function(*args, **kwargs))
                for source, values in zip(node.all_input_nodes, sources, strict=True):
                    if source in last_read:
                        values[index] = None
        return results

    def _float_state(self, node: Node) -> State:
        """Return what the float model has for the parameters that ``node`` reads, as :func:`_state` does."""
        found = [self._weights[path] for path in parameter_paths(node) if path in self._weights]
        return [(tensor, tensor._version) for tensor in found]

    def _refuse_changes_behind(self, changed: Sequence[str], node: Node, pass_name: str) -> None:
        for path in changed:
            if path in self._passed:
                raise PassError(
                    f"pass {pass_name!r} changes {path!r} at node {node.name!r}, when the streams have left "
                    f"{self._passed[path]!r}, which reads it, behind: change it at that node, or after the loop"
                )


def by_placeholder(gm: GraphModule, inputs: Inputs) -> dict[str, Any]:
    """Return the value that a call gives to each placeholder, by name."""
    bound = inspect.signature(gm.forward).bind(*inputs.args, **inputs.kwargs)
    bound.apply_defaults()
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    return {node.name: value for node, value in zip(placeholders, bound.arguments.values(), strict=True)}


def last_reads(order: list[Node]) -> dict[Node, list[Node]]:
    """Return, for each node, the nodes that nothing reads after it."""
    last = {node: node for node in order}
    for node in order:
        for source in node.all_input_nodes:
            last[source] = node
    dying: dict[Node, list[Node]] = {}
    for source, reader in last.items():
        dying.setdefault(reader, []).append(source)
    return dying


def function_of(gm: GraphModule, node: Node, weights: Mapping[str, Tensor]) -> Callable[..., Any]:
    """Return what ``node`` calls, no placeholder; a stored tensor is taken from ``weights`` where it is there."""
    if node.op == "call_module":
        return module_of(node)
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        stored = weights.get(str(node.target), getattr(gm.get_submodule(owner), name))
        return lambda: stored
    if node.op == "output":
        return lambda *args: args[0]
    if node.op == "call_method":
        return lambda self, *args, **kwargs: getattr(self, str(node.target))(*args, **kwargs)
    return node.target  # type: ignore[return-value]


def parameter_paths(node: Node) -> list[str]:
    """Return the paths of the parameters that ``node`` reads."""
    if node.op == "get_attr":
        return [str(node.target)]
    if node.op != "call_module":
        return []
    return [path for path, _ in module_of(node).named_parameters(prefix=str(node.target), remove_duplicate=False)]


def _bias_of(node: Node) -> Tensor | None:
    """Return a copy of the bias that a quantized layer adds last; None where there is none, or rounding would show."""
    layer: Any = module_of(node) if node.op == "call_module" else None
    if not isinstance(layer, WeightQuantized) or kind(node) not in _ADDS_BIAS_LAST or computed_tensors(layer):
        return None
    if has_other_hooks(layer) or not type(layer).__module__.startswith("fxq.nn."):
        return None  # who knows what they do to the output
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    return bias.detach().clone() if bias is not None and bias.dtype in (torch.float32, torch.float64) else None


def _quantizer_paths(node: Node) -> list[str]:
    """Return the paths of the quantizers that ``node`` calls."""
    if node.op != "call_module":
        return []
    found = module_of(node).named_modules(prefix=str(node.target))
    return [path for path, one in found if isinstance(one, TensorQuantizer)]


def _state(node: Node) -> State:
    """Return all tensors of the module that ``node`` calls, each with the number of times it was written to; and its
    quantizers, each with whether it is on.
    """
    if node.op != "call_module":
        return []
    module = module_of(node)
    tensors = [(tensor, tensor._version) for tensor in (*module.parameters(), *module.buffers())]
    return [*tensors, *((one, one.is_enabled) for one in module.modules() if isinstance(one, TensorQuantizer))]


def _is_same_state(before: State, now: State) -> bool:
    return len(before) == len(now) and all(
        old is new and old_version == version for (old, old_version), (new, version) in zip(before, now, strict=True)
    )
