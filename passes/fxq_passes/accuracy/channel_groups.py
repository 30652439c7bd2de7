"""Channel groups: tensors whose channels can be scaled together without changing what the model computes.

A layer's output channel can be divided by s where whatever reads it multiplies its input channel by s. In between may
lie what commutes with a positive factor for each channel: rectifiers, pooling, residual adds (both members take the
factor), quantizers of one range. Whatever else reads a tensor of a group blocks it.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from networkx.utils import UnionFind
from torch import nn
from torch.fx import Node

from fxq import Rewriter, TensorQuantizer
from fxq.graph import is_quantizer, is_weighted, kind, shape_of, tensor_edges, why_altered
from fxq.graph.kinds import reads_shape
from fxq.nn import computed_tensors
from fxq_passes.accuracy.channel_axes import CARRIERS, carried_axis
from fxq_passes.accuracy.layer_matrix import LayerMatrix

_CLIPS = frozenset({"relu6", "clip"})
_NORMS = frozenset({"layer_norm", "rms_norm", "batch_norm"})


@dataclass
class ChannelGroup:
    """Tensors with tied channels.

    Args:
        channels: how many.
        producers: layers, norms and products with a stored factor that make them; each output channel can be divided.
        consumers: layers that read them; each input channel can be multiplied.
        clips: ReLU6 and the like in between; their bounds take the factor.
        quantizers: calls of quantizers in between.
        blocked: why no factor can be put in; None where one can.
    """

    channels: int
    producers: list[Node] = field(default_factory=list)
    consumers: list[Node] = field(default_factory=list)
    clips: list[Node] = field(default_factory=list)
    quantizers: list[Node] = field(default_factory=list)
    blocked: str | None = None


def channel_groups(rw: Rewriter) -> list[ChannelGroup]:
    """Return the groups that a layer or norm makes and a layer reads, blocked ones too, in graph order."""
    finder = _Finder(rw)
    for node in rw.nodes():
        finder.visit(node)
    return finder.groups()


class _Finder:
    """One walk over the graph in execution order.

    ``axes`` holds the channel dimension of each tensor that belongs to a group.
    """

    def __init__(self, rw: Rewriter) -> None:
        self._rw = rw
        self.layers = UsableLayers(rw)
        self.axes: dict[Node, int] = {}
        self._ties: Any = UnionFind()
        self._blocked: dict[Node, str] = {}
        self._roles: list[tuple[str, Node, Node]] = []  # role, node, and a tensor of its group

    def visit(self, node: Node) -> None:
        """Give the tensor that ``node`` makes its place in a group, and block what cannot be scaled."""
        word = kind(node)
        if reads_shape(node) or node.op in ("placeholder", "get_attr"):
            return
        if is_weighted(node):
            self._layer(node)
        elif word in _NORMS:
            self._norm(node)
        elif word == "quantizer":
            self._quantizer(node)
        elif word in CARRIERS:
            self._carry(node)
        elif word in _CLIPS and is_clip_at_zero(self._rw.module(node)):
            self._clip(node)
        elif word == "add" and _are_alike(node):
            self._add(node)
        elif word == "mul" and len(tensor_edges(node)) == 2:
            self._gate(node)
        else:
            self._block_inputs(node)

    def groups(self) -> list[ChannelGroup]:
        """Return what was found."""
        found: dict[Node, ChannelGroup] = {}
        for role, node, tensor in self._roles:
            root = self._ties[tensor]
            if root not in found:
                shape = shape_of(tensor)
                assert shape is not None
                found[root] = ChannelGroup(shape[self.axes[tensor]])
            getattr(found[root], role).append(node)
        for tensor, reason in self._blocked.items():
            if tensor in self.axes and self._ties[tensor] in found:
                group = found[self._ties[tensor]]
                group.blocked = group.blocked or reason
        return [group for group in found.values() if group.producers and group.consumers]

    def _layer(self, node: Node) -> None:
        source, shape, layer = node.all_input_nodes[0], shape_of(node), self._rw.module(node)
        if shape is None:
            self._block(source, f"{node.name!r} has no known shape")
            return
        axis = len(shape) - 1 if isinstance(layer, nn.Linear) else len(shape) - layer.weight.dim() + 1
        if self.axes.get(source) == axis:
            self._roles.append(("consumers", node, source))
        else:
            self._block(source, f"{node.name!r} reads it along another dimension")
        self._begin(node, axis)
        self._roles.append(("producers", node, node))
        if (reason := self.layers.why_not(node)) is not None:
            self._block(source, reason)
            self._block(node, reason)

    def _norm(self, node: Node) -> None:
        self._block_inputs(node)
        module, shape = self._rw.module(node) if node.op == "call_module" else None, shape_of(node)
        if module is None or shape is None or getattr(module, "weight", None) is None:
            return
        if self.layers.why_not_norm(node) is not None or module.weight.dim() != 1:
            return
        self._begin(node, len(shape) - 1 if isinstance(module, nn.LayerNorm | nn.RMSNorm) else 1)
        self._roles.append(("producers", node, node))

    def _quantizer(self, node: Node) -> None:
        quantizer = self._rw.module(node)
        assert isinstance(quantizer, TensorQuantizer)
        source = node.all_input_nodes[0]
        if quantizer.descriptor.axis is not None:
            self._block_inputs(node)
        elif source in self.axes:
            self._tie(node, source)
            self._roles.append(("quantizers", node, node))
            if quantizer.calibrator is None:
                self._block(node, f"the range of {node.name!r} is given")

    def _carry(self, node: Node) -> None:
        source = node.all_input_nodes[0]
        axis = carried_axis(node, self.axes[source]) if source in self.axes else None
        if axis is None:
            self._block_inputs(node)
            return
        self._tie(node, source)
        self.axes[node] = axis

    def _clip(self, node: Node) -> None:
        source = node.all_input_nodes[0]
        if source not in self.axes:
            return
        if self.layers.calls[str(node.target)] > 1:
            self._block(source, f"the module of {node.name!r} is called more than once")
            return
        self._tie(node, source)
        self._roles.append(("clips", node, node))

    def _add(self, node: Node) -> None:
        sources = [edge.producer for edge in tensor_edges(node)]
        if len({self.axes.get(source) for source in sources}) > 1 or sources[0] not in self.axes:
            self._block_inputs(node)
            return
        for source in sources:
            self._tie(node, source)

    def _gate(self, node: Node) -> None:
        """Tie a product to its first factor of full shape; the other one, a gate, must stay as it is."""
        first, second = (edge.producer for edge in tensor_edges(node))
        if shape_of(first) != shape_of(node) or (shape_of(second) == shape_of(node) and first not in self.axes):
            first, second = second, first
        self._block(second, f"{node.name!r} multiplies by it")
        if first is second or first not in self.axes or shape_of(first) != shape_of(node):
            self._block(first, f"{node.name!r} multiplies by it")
            self._stored_factor(node)
            return
        self._tie(node, first)

    def _stored_factor(self, node: Node) -> None:
        """Begin a group where a factor for each channel is stored, as that of an RMSNorm that is written out."""
        found, shape = stored_factor(node), shape_of(node)
        if found is None or shape is None or self.layers.why_not_stored(found) is not None:
            return
        stored = self._rw.tensor(found)
        long = [dim - stored.dim() for dim, size in enumerate(stored.shape) if size > 1]  # counted from the end
        if len(long) == 1 and len(shape) + long[0] > 0 and shape[long[0]] == stored.numel():
            self._begin(node, len(shape) + long[0])
            self._roles.append(("producers", node, node))

    def _begin(self, node: Node, axis: int) -> None:
        self.axes[node] = axis

    def _tie(self, node: Node, source: Node) -> None:
        self.axes[node] = self.axes[source]
        self._ties.union(source, node)

    def _block_inputs(self, node: Node) -> None:
        for source in node.all_input_nodes:
            self._block(source, f"{node.name!r} reads it as well")

    def _block(self, tensor: Node, reason: str) -> None:
        self._blocked.setdefault(tensor, reason)


class UsableLayers:
    """Which layers have a weight of their own that may be changed."""

    def __init__(self, rw: Rewriter) -> None:
        self._rw = rw
        self.calls = Counter(str(node.target) for node in rw.nodes(lambda node: node.op == "call_module"))
        self._paths = Counter(id(parameter) for _, parameter in rw.gm.named_parameters(remove_duplicate=False))
        for node in rw.nodes(lambda node: node.op == "get_attr"):
            self._paths[id(rw.tensor(node))] += 1  # the graph reads it beside the layer

    def why_not(self, node: Node) -> str | None:
        """Return why the weight of the layer that ``node`` calls cannot be scaled, None where it can."""
        layer = self._rw.module(node)
        if LayerMatrix.of(layer) is None:
            return f"{node.name!r} is a {type(layer).__name__}"
        if computed_tensors(layer):
            return f"the weight of {node.name!r} is computed in each call"
        return self.why_not_norm(node)

    def why_not_norm(self, node: Node) -> str | None:
        """The same of any module with a weight and a bias."""
        module = self._rw.module(node)
        if self.calls[str(node.target)] > 1:
            return f"{node.target!r} is called more than once"
        if (reason := why_altered(module)) is not None:
            return f"{node.target!r} {reason}"
        if any(self._paths[id(one)] > 1 for one in module.parameters(recurse=False)):
            return f"{node.target!r} shares its weight"
        return None

    def why_not_stored(self, node: Node) -> str | None:
        """The same of a parameter that ``node`` reads, as no module's own."""
        stored = self._rw.tensor(node)
        if not isinstance(stored, nn.Parameter):
            return f"{node.target!r} is no parameter"
        quantizers = [reader for reader in node.users if is_quantizer(reader)]
        has_one_path = self._paths[id(stored)] == 2  # its own path, and this node
        if not has_one_path or any(len(one.users) != 1 for one in (node, *quantizers)):
            return f"{node.target!r} is read elsewhere"
        is_given = any(self._rw.module(one).calibrator is None for one in quantizers)
        return f"the range of {node.target!r} is given" if is_given else None


def stored_factor(node: Node) -> Node | None:
    """Return the read of a stored tensor that ``node`` multiplies by, None where it is no such product.

    It may be read through a quantizer, whose range follows the tensor.
    """
    read = [one.all_input_nodes[0] if is_quantizer(one) else one for one in node.all_input_nodes]
    return next((one for one in read if one.op == "get_attr"), None) if kind(node) == "mul" else None


def is_clip_at_zero(module: nn.Module) -> bool:
    """Return whether ``module`` clips at 0 from below and at some bound from above."""
    return isinstance(module, nn.ReLU6) or (isinstance(module, nn.Hardtanh) and module.min_val == 0)


def _are_alike(node: Node) -> bool:
    edges = tensor_edges(node)
    return len(edges) == 2 and len({shape_of(edge.producer) for edge in edges} | {shape_of(node)}) == 1
