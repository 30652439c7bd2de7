"""Batch norms at inference move into the weights of the layer beside them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Node

from fxq import ROUNDING, Pass, Rewriter, Stage, register_pass
from fxq.graph import is_weighted, kind, shape_of
from fxq.nn import fold_in_training
from fxq_passes.folding.batchnorm_algebra import affine_of, fold_after, fold_before
from fxq_passes.folding.foldable import uses_by_id, uses_of, why_not_plain
from fxq_passes.folding.unsharing import unshare


@register_pass("fold_batchnorm")
@dataclass(frozen=True)
class FoldBatchnorm(Pass):
    """Fold batch norm into the convolution or linear layer before it, else, where exact, into the one behind it.

    In training the layer before it folds it anew in each step (``fxq.nn.BatchNormFolded``), until ``convert``.

    Args:
        before: also fold batch norms that stand before a layer.
    """

    stage = Stage.NORMALIZED
    tolerance = ROUNDING
    before: bool = True

    def run(self, rw: Rewriter) -> None:
        """Fold each batch norm once for all of its calls."""
        if not rw.qat:
            unshare(rw)
        calls: dict[nn.Module, list[Node]] = {}
        for node in rw.nodes(lambda node: kind(node) == "batch_norm"):
            calls.setdefault(rw.module(node), []).append(node)
        uses = uses_by_id(rw)
        for bn, nodes in calls.items():
            reason = why_not_plain(bn)
            if reason is not None:
                rw.skip(nodes[0], reason)
                continue
            why_not_after = _why_not_after(rw, nodes, uses)
            if why_not_after is None:
                _fold(rw, nodes, [node.all_input_nodes[0] for node in nodes], fold_after)
                continue
            why_not_before = _why_not_before(rw, nodes, uses) if self.before else "option before=False"
            if why_not_before is None:
                _fold(rw, nodes, [next(iter(node.users)) for node in nodes], fold_before)
                continue
            rw.skip(nodes[0], f"{why_not_after}; {why_not_before}")


def _fold(rw: Rewriter, nodes: Sequence[Node], layers: Sequence[Node], algebra: Any) -> None:
    bn, layer, why = rw.module(nodes[0]), rw.module(layers[0]), f"folded into {layers[0].target!r}"
    if rw.qat and algebra is fold_after:
        fold_in_training(layer, bn)
        why += " in each step of training"
    else:
        algebra(*((layer, bn) if algebra is fold_after else (bn, layer)))
    for node in nodes:
        rw.bypass(node, why)


def _why_not_after(rw: Rewriter, nodes: Sequence[Node], uses: Counter[int]) -> str | None:
    """Return why the batch norm cannot move into the layer before it, None if it can."""
    layers = [node.all_input_nodes[0] for node in nodes]
    if not all(is_weighted(layer) for layer in layers):
        return "its input is not computed by a convolution or linear layer"
    if len({id(rw.module(layer)) for layer in layers}) > 1:
        return "it is called behind different layers"
    readers = [layer for layer in layers if len(layer.users) > 1]
    if readers:
        return f"{readers[0].target!r} has {len(readers[0].users)} readers; folding would change the others"
    if uses_of(rw.module(layers[0]), uses) != len(layers):
        return f"{layers[0].target!r} is also called where this batch norm does not follow"
    reason = _why_not_linear(layers) if kind(layers[0]) == "linear" else None
    return reason or why_not_plain(rw.module(layers[0]))


def _why_not_before(rw: Rewriter, nodes: Sequence[Node], uses: Counter[int]) -> str | None:
    """Return why the batch norm cannot move into the layer behind it, None if it can."""
    if any(len(node.users) != 1 for node in nodes):
        return f"{nodes[0].name!r} has {len(nodes[0].users)} readers"
    layers = [next(iter(node.users)) for node in nodes]
    if not all(is_weighted(layer) and kind(layer) != "conv_transpose" for layer in layers):
        return "no convolution or linear layer follows it"
    if len({id(rw.module(layer)) for layer in layers}) > 1 or uses_of(rw.module(layers[0]), uses) != len(layers):
        return "the layer behind it is also called elsewhere"
    layer = rw.module(layers[0])
    if kind(layers[0]) == "linear":
        return why_not_plain(layer) or _why_not_linear(nodes)
    pads = layer.padding != "valid" and any(size != 0 for size in _as_tuple(layer.padding))
    shifts = bool((affine_of(rw.module(nodes[0]))[1] != 0).any())
    if pads and layer.padding_mode == "zeros" and shifts:
        return "the convolution behind it pads with zeros, which the batch norm does not shift"
    return why_not_plain(layer)


def _why_not_linear(sources: Sequence[Node]) -> str | None:
    shapes = [shape_of(source) for source in sources]
    if any(shape is None for shape in shapes):
        return "the rank of its input is not known; give prepare() example_inputs"
    if any(len(shape) != 2 for shape in shapes if shape is not None):
        return "behind a linear layer on 3-d input it normalizes another dimension than the features"
    return None


def _as_tuple(padding: object) -> tuple[object, ...]:
    return padding if isinstance(padding, tuple) else (padding,)
