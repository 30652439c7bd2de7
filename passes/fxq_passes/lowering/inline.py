"""Lower a module that quantizes inside of its computation: its forward is written out, quantizers as q/dq nodes.

The forward is traced with the shapes of the call, and each of its operations becomes a node of the graph: weights are
stored integers, also where the forward takes a part of one; activations get a quantize and a dequantize, one pair for
each tensor and range; with dynamic ranges the products become DYNAMIC_LINEAR and DYNAMIC_MATMUL.
"""

import dataclasses
import inspect
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node, Proxy
from torch.fx.node import map_arg
from torch.nn import functional
from torch.utils import _pytree as pytree

from fxq import GraphError, TensorQuantizer, lowers
from fxq.graph.shape_proxy import item_of
from fxq.graph.shape_tracer import ShapeTracer
from fxq.graph.trace import erase_dead_questions
from fxq.nn import QParams, QuantGRUCell, Quantized, QuantLSTMCell, QuantMultiheadAttention, QuantRNNCell
from fxq.quant import DYNAMIC_LINEAR, DYNAMIC_MATMUL
from fxq_passes.lowering.qdq import Lowering, is_on
from fxq_passes.lowering.stored_weights import is_linear_weight, select_rows

_MATMULS = (torch.matmul, operator.matmul)


@lowers(QuantMultiheadAttention, QuantLSTMCell, QuantGRUCell, QuantRNNCell)
class LowerByInlining:
    """Write out attention and recurrent cells; the packed projection of attention becomes three.

    Query, key and value that are one tensor with one range are quantized once. The gates of a cell stay in float.
    """

    def why_not(self, node: Node, module: Any) -> str | None:
        """Return that the shapes are not known, if so."""
        if any(producer.meta.get("val") is None for producer in node.all_input_nodes):
            return "it is written out for the shapes of its inputs: give fxq.prepare() example_inputs"
        return None

    def lower(self, lowering: Lowering, node: Node, layer: Quantized) -> None:
        """Replace a call of ``layer`` by the lowered operations of its forward."""
        arguments = _arguments(node, layer)
        graph = _traced(layer, arguments)
        inliner = _Inliner(lowering, node, layer)
        value = inliner.run(graph, arguments)
        why = "written out, with explicit quantize and dequantize and stored integer weights"
        lowering.rw.replace_by(node, value, why)
        lowering.rw.erase_unread(inliner.created)


@dataclass(frozen=True)
class _Stored:
    """A tensor of the module, or a part of one; what quantizes it, if anything does."""

    name: str
    tensor: Tensor
    params: QParams | None = None

    def chunks(self, count: int) -> "list[_Stored]":
        """Return its parts along dimension 0."""
        rows = torch.arange(len(self.tensor), device=self.tensor.device).chunk(count)
        return [
            _Stored(f"{self.name}_{index}", self.tensor[part], self.params and select_rows(self.params, part))
            for index, part in enumerate(rows)
        ]


@dataclass(frozen=True)
class _Dynamic:
    """A tensor that is quantized with the range it has when the model runs."""

    source: Node


@dataclass
class _Inliner:
    lowering: Lowering
    node: Node
    layer: Quantized
    created: list[Node] = field(default_factory=list)
    values: dict[Node, Any] = field(default_factory=dict)
    # What was written before: equal operations on equal inputs are one, as are equal quantizers of one tensor.
    written: dict[Any, Any] = field(default_factory=dict)

    def run(self, graph: Graph, arguments: dict[str, Any]) -> Any:
        """Write the nodes of ``graph``; return what its output is, as nodes."""
        for traced in graph.nodes:
            match traced.op:
                case "placeholder":
                    self.values[traced] = arguments[str(traced.target)]
                case "get_attr":
                    name = str(traced.target)
                    self.values[traced] = _Stored(name, operator.attrgetter(name)(self.layer).detach())
                case "call_module":
                    self.values[traced] = self._quantized(traced)
                case "output":
                    return self._given(_mapped(traced.args[0], self.values))
                case _:
                    self.values[traced] = self._operation(traced)
        raise GraphError(f"{self.node.target!r} returns nothing")

    def _quantized(self, traced: Node) -> Any:
        quantizer: TensorQuantizer = operator.attrgetter(str(traced.target))(self.layer)
        source = self.values[traced.all_input_nodes[0]]
        if not is_on(quantizer):
            return source
        if isinstance(source, _Stored):
            return dataclasses.replace(source, params=quantizer.qparams())
        if quantizer.descriptor.is_dynamic:
            return _Dynamic(source)
        found = quantizer.qparams()
        key = (source, found.scale.tolist().__repr__(), found.zero_point.tolist().__repr__(), found.lo, found.hi)
        if key not in self.written:
            place = f"{self.node.target}.{str(traced.target).strip('_')}"
            self.written[key] = self.lowering.activation(self.node, source, place, quantizer)
        return self.written[key]

    def _operation(self, traced: Node) -> Any:
        args, kwargs = _mapped((traced.args, traced.kwargs), self.values)
        first = args[0] if args else None
        if isinstance(first, _Stored) and traced.target == "chunk":
            return first.chunks(args[1])
        if isinstance(first, list | tuple) and traced.target is operator.getitem:
            return first[args[1]]
        if traced.target is functional.dropout:
            return first  # the model is in evaluation
        if isinstance(first, _Dynamic):
            if traced.target is functional.linear and _is_dynamic_weight(args[1]):
                return self._dynamic_linear(traced, *args)
            if traced.target in _MATMULS and isinstance(args[1], _Dynamic):
                return self._create(traced, DYNAMIC_MATMUL, (first.source, args[1].source))
        return self._create(traced, traced.target, self._given(args), self._given(kwargs))

    def _dynamic_linear(self, traced: Node, source: _Dynamic, weight: _Stored, bias: _Stored | None) -> Node:
        assert weight.params is not None
        place = f"{self.node.target}.{weight.name}"
        codes, step = self.lowering.stored_codes(self.node, place, weight.tensor, weight.params)
        return self._create(traced, DYNAMIC_LINEAR, (source.source, codes, step, self._given(bias)))

    def _create(self, traced: Node, function: Any, args: Any, kwargs: Any = None) -> Node:
        key = (str(function), repr(args), repr(kwargs))
        if key not in self.written:
            value = traced.meta.get("val")
            new = self.lowering.rw.insert_call(self.node, function, args, self.node, kwargs, value)
            self.created.append(new)
            self.written[key] = new
        found: Node = self.written[key]
        return found

    def _given(self, value: Any) -> Any:
        """Return ``value`` as arguments of a node: stored tensors are read, dynamic ones taken as they are."""
        if isinstance(value, tuple | list):
            return type(value)(self._given(item) for item in value)
        if isinstance(value, dict):
            return {name: self._given(item) for name, item in value.items()}
        if isinstance(value, _Dynamic):
            return value.source
        return self._read(value) if isinstance(value, _Stored) else value

    def _read(self, stored: _Stored) -> Node:
        key = (stored.name, stored.params is None)
        if key not in self.written:
            place = f"{self.node.target}.{stored.name}"
            if stored.params is None:
                self.written[key] = self.lowering.rw.read_tensor(self.node, place, stored.tensor)
            else:
                dtype = stored.tensor.dtype
                self.written[key] = self.lowering.weight_value(self.node, place, stored.tensor, stored.params, dtype)
        found: Node = self.written[key]
        return found


class _InlineTracer(ShapeTracer):
    """Gives the forward tuples where the call passes tuples, so that it can ask for them."""

    def _argument(self, proxy: Any) -> Any:
        value: Any = proxy.node.meta.get("val") if isinstance(proxy, Proxy) else None
        if type(value) in (tuple, list):
            return tuple(item_of(proxy, index) for index in range(len(value)))
        return super()._argument(proxy)


def _arguments(node: Node, layer: Quantized) -> dict[str, Any]:
    """Return the arguments of the call by the names of forward's parameters, defaults included."""
    parameters = list(inspect.signature(type(layer).forward).parameters.values())[1:]
    bound = inspect.Signature(parameters).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _traced(layer: Quantized, arguments: dict[str, Any]) -> Graph:
    def example(argument: Node) -> Any:
        return pytree.tree_map_only(Tensor, _empty, argument.meta["val"])

    tracer = _InlineTracer(inputs=map_arg(arguments, example))
    graph = tracer.trace(layer)
    erase_dead_questions(graph)
    return graph


def _empty(value: Tensor) -> Tensor:
    return torch.empty(tuple(int(size) for size in value.shape), dtype=value.dtype, device=value.device)


def _mapped(arguments: Any, values: dict[Node, Any]) -> Any:
    """Return ``arguments`` with each node replaced by its value, which need not be a node."""
    return map_arg(arguments, lambda node: values[node])


def _is_dynamic_weight(weight: Any) -> bool:
    return isinstance(weight, _Stored) and weight.params is not None and is_linear_weight(weight.params)
