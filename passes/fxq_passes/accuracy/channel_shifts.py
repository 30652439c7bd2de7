"""Which layer's bias can move the channels of a group: ``W x + b = W (x - z) + (b + W z)``, with z for each channel.

What the bias takes from a tensor must reach every layer that reads it, and nothing else. In between may lie what
commutes with a constant for each channel: quantizers, pooling, copies, and an add, which passes on what one of its
operands brings. So the first layer of a stream of residual blocks moves the whole stream. A rectifier commutes with a
factor, and not with a constant; a convolution that pads sees 0 beside its input, which stands for -z then.

Source: Wei et al. 2023, arXiv:2304.09145 (channel-wise shifting).
"""

from typing import Any

from torch.fx import Node

from fxq import Rewriter
from fxq.graph import is_quantizer, is_weighted, kind, tensor_edges
from fxq.graph.kinds import reads_shape
from fxq_passes.accuracy.channel_groups import ChannelGroup, UsableLayers
from fxq_passes.accuracy.layer_matrix import LayerMatrix

_POOLS = frozenset({"max_pool", "adaptive_avg_pool", "global_avg_pool", "mean"})
_CARRIERS = _POOLS | {"add", "resize", "reshape", "transpose"}
_WITH_BIAS = frozenset({"layer_norm", "batch_norm"})


def shift_root(rw: Rewriter, group: ChannelGroup, usable: UsableLayers) -> Node | None:
    """Return the producer of ``group`` whose bias moves the channels of all that its consumers read, None without."""
    if group.blocked is not None or not all(takes_shift_back(rw, node) for node in group.consumers):
        return None
    consumers = set(group.consumers)
    first = min(consumers)  # in graph order: what stands behind it does not move it, and need not be followed
    return next((node for node in group.producers if node < first and _moves_all(rw, node, consumers, usable)), None)


def takes_shift_back(rw: Rewriter, node: Node) -> bool:
    """Return whether the bias of the layer that ``node`` calls can add what a constant of its input would have."""
    matrix = LayerMatrix.of(rw.module(node))
    return matrix is not None and not matrix.is_padded


def _moves_all(rw: Rewriter, root: Node, consumers: set[Node], usable: UsableLayers) -> bool:
    """Return whether a constant that the bias of ``root`` adds reaches all of ``consumers``, once, and nothing else."""
    if not _has_bias(rw, root) or usable.why_not_norm(root) is not None:
        return False
    moved, readers, layers = {root}, [root], set[Node]()
    while readers:
        for node in readers.pop().users:
            if node in moved or reads_shape(node):
                continue
            if node in consumers:
                layers.add(node)
            elif _carries(rw, node):
                moved.add(node)
                readers.append(node)
            else:
                return False
    once = all(_operands(node, moved) == 1 for node in moved if kind(node) == "add")
    return once and layers == consumers


def _has_bias(rw: Rewriter, node: Node) -> bool:
    if is_weighted(node):
        return True
    module: Any = rw.module(node) if node.op == "call_module" and kind(node) in _WITH_BIAS else None
    return getattr(module, "bias", None) is not None


def _carries(rw: Rewriter, node: Node) -> bool:
    """Return whether a constant for each channel passes through ``node``, which a factor for each does."""
    if kind(node) == "avg_pool":
        pool: Any = rw.module(node) if node.op == "call_module" else None
        padding = getattr(pool, "padding", 1)
        sizes = padding if isinstance(padding, tuple) else (padding,)
        return not any(sizes) and getattr(pool, "divisor_override", None) is None
    return is_quantizer(node) or kind(node) in _CARRIERS


def _operands(node: Node, moved: set[Node]) -> int:
    return sum(edge.producer in moved for edge in tensor_edges(node))
