"""An integer model as plain data: its operators in order, and its tensors, for whoever runs it without PyTorch.

Only what computes on integers is told, with fixed sizes: from the codes that a quantize makes to the integers that a
dequantize reads. Of what moves data two words are left: "reshape", which moves nothing, and "gather", with the place in
its source of each element, -1 for a fill value.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.nn import functional

from fxq.compare.outputs import running_alike
from fxq.graph.stored import stored_tensor
from fxq.quant import DEQUANTIZE, QUANTIZE, lowered_kind

VERSION = 1
ROUNDING = (
    "requantize: codes = clamp(zero_point + round(sum((value - value_zero) * multiplier) / 2^shift), quant_min, "
    "quant_max), in 64 bits, half to even"
)


@dataclass(frozen=True)
class Description:
    """Plain data, as JSON holds it, and the tensors that it names."""

    data: dict[str, Any]
    tensors: dict[str, Tensor]


def describe(gm: GraphModule, inputs: tuple[Any, ...]) -> Description:
    """Return the integer part of ``gm``, an integer model, for inputs of the sizes of ``inputs``."""
    watching = _Watching(gm)
    with running_alike(gm):
        watching.run(*inputs)
    return _Describer(watching.results).run(gm)


@dataclass(frozen=True)
class _Moved:
    """Values that were moved: the place of each element in its source (-1: ``fill``)."""

    source: str
    places: Any  # int64 tensors, or a tuple of them as chunk makes
    fill: int = 0


@dataclass
class _Describer:
    results: dict[Node, Any]
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    moved: dict[Node, _Moved] = field(default_factory=dict)
    float_nodes: list[str] = field(default_factory=list)

    def run(self, gm: GraphModule) -> Description:
        codes: set[Node] = set()
        for node in gm.graph.nodes:
            found = lowered_kind(node.target)
            if node.target is QUANTIZE:
                self.inputs.append({"name": node.name, **self._tensor_of(node), **_parameters(node)})
            elif node.target is DEQUANTIZE and node.all_input_nodes[0] in codes:
                self.outputs.append({"name": self._value(node.all_input_nodes[0]), **_parameters(node)})
                continue
            elif found == "integer":
                self._operator(node)
            elif any(read in codes for read in node.all_input_nodes) and node.op != "output":
                self._move(node)
            elif node.op in ("call_module", "call_function", "call_method"):
                self.float_nodes.append(node.name)
                continue
            else:
                continue
            codes.add(node)
        data = {
            "format": "fxq integer model",
            "version": VERSION,
            "rounding": ROUNDING,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "nodes": self.nodes,
            "left_in_float": self.float_nodes,
        }
        return Description(data, self.tensors)

    def _operator(self, node: Node) -> None:
        schema = node.target._schema.arguments  # type: ignore[union-attr]  # an operator of fxq
        arguments = {one.name: self._plain(given) for one, given in zip(schema, node.args, strict=True)}
        name = node.target._schema.name.rpartition("::")[2]  # type: ignore[union-attr]  # the same
        self._add(node.name, name, arguments, self._tensor_of(node))

    def _add(self, name: str, operator: str, arguments: dict[str, Any], tensor: dict[str, Any]) -> None:
        self.nodes.append({"name": name, "operator": operator, "arguments": arguments, **tensor})

    def _move(self, node: Node) -> None:
        if node.target is torch.cat:
            parts: Any = node.args[0]
            dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            rank = self.results[node].dim()
            arguments = {"values": self._plain(parts), "dim": dim % rank - rank}
            self._add(node.name, "cat", arguments, self._tensor_of(node))
            return
        source = next(read for read in node.all_input_nodes if read.op != "get_attr")
        if node.target is functional.pad:
            self._value(source)  # whose own fill value may be another
        before = self.moved.get(source) or _Moved(source.name, _places(self.results[source]))
        fill: Any = before.fill
        args, kwargs = map_arg((node.args, node.kwargs), lambda read: self._moving(read, source, before))
        if node.target is functional.pad:
            fill, args = args[3], (*args[:3], -1)
        self.moved[node] = _Moved(before.source, _called(node, args, kwargs), fill)

    def _moving(self, read: Node, source: Node, before: _Moved) -> Any:
        if read is source:
            return before.places
        return stored_tensor(read) if read.op == "get_attr" else self.results[read]

    def _plain(self, argument: Any) -> Any:
        if isinstance(argument, Node) and argument.op == "get_attr":
            path = str(argument.target)
            self.tensors[path] = stored_tensor(argument).detach().cpu().contiguous()
            return {"tensor": path}
        if isinstance(argument, Node):
            return {"value": self._value(argument)}
        if isinstance(argument, tuple | list):
            return [self._plain(item) for item in argument]
        return str(argument).removeprefix("torch.") if isinstance(argument, torch.dtype) else argument

    def _value(self, node: Node) -> str:
        """Return the name of what ``node`` computes; what was moved becomes a node of the description here."""
        moved = self.moved.pop(node, None)
        if moved is not None:
            tensor = self._tensor_of(node)
            places = moved.places.reshape(-1)
            source = {"source": {"value": moved.source}}
            if torch.equal(places, torch.arange(len(places))):
                self._add(node.name, "reshape", source, tensor)
            else:
                self.tensors[f"{node.name}.places"] = places.to(torch.int32)
                stored = {"tensor": f"{node.name}.places"}
                self._add(node.name, "gather", {**source, "places": stored, "fill": moved.fill}, tensor)
        return node.name

    def _tensor_of(self, node: Node) -> dict[str, Any]:
        found = self.results[node]
        return {"shape": list(found.shape), "dtype": str(found.dtype).removeprefix("torch.")}


class _Watching(fx.Interpreter):
    """Keeps what each node computes."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.results: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        self.results[n] = super().run_node(n)
        return self.results[n]


def _places(tensor: Tensor) -> Tensor:
    return torch.arange(tensor.numel()).reshape(tensor.shape)


def _called(node: Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_module":
        module = node.graph.owning_module.get_submodule(str(node.target))  # type: ignore[union-attr]
        return module(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _parameters(node: Node) -> dict[str, Any]:
    """Return scale and zero point of a quantize or dequantize, numbers or lists of them, and their dimension."""
    scale, zero_point, axis = node.args[1:4]
    return {"scale": stored_tensor(scale).tolist(), "zero_point": stored_tensor(zero_point).tolist(), "axis": axis}
