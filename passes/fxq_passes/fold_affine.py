"""Stored factors and summands, one for each channel, move into the layer before them.

``(W x + b) * s + t = (s W) x + (s b + t)``: frozen batch norms, layer scales, biases that stand apart. In float64,
rounded once.
"""

import operator
from collections.abc import Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxq import ROUNDING, Pass, Rewriter, Stage, register_pass
from fxq.graph import is_weighted, kind, only_reader, shape_of, writes_in_place
from fxq_passes.folding.batchnorm_algebra import scale_and_shift
from fxq_passes.folding.computed_weights import constant_nodes, stored_value
from fxq_passes.folding.foldable import uses_by_id, uses_of, why_not_plain

# The factor and the summand that an operation applies, by its operand.
_AFFINE: Mapping[Any, Any] = MappingProxyType(
    {
        operator.mul: lambda value_c: (value_c, torch.zeros_like(value_c)),
        operator.truediv: lambda value_c: (1 / value_c, torch.zeros_like(value_c)),
        operator.add: lambda value_c: (torch.ones_like(value_c), value_c),
        operator.sub: lambda value_c: (torch.ones_like(value_c), -value_c),
    }
)


@register_pass("fold_affine")
@dataclass(frozen=True)
class FoldAffine(Pass):
    """Fold stored factors and summands of channels into the convolution or linear layer before them.

    In training it is left alone: they may be what is trained.
    """

    stage = Stage.NORMALIZED
    tolerance = ROUNDING

    def run(self, rw: Rewriter) -> None:
        """Fold all that follows a layer, one after the other."""
        if rw.qat:
            return
        stored, uses = constant_nodes(rw), uses_by_id(rw)
        for layer in rw.nodes(is_weighted):
            reader = only_reader(layer)
            while reader is not None and (value_c := _of_channels(rw, layer, reader, stored)) is not None:
                module = rw.module(layer)
                reason = why_not_plain(module)
                if uses_of(module, uses) != 1:
                    reason = f"{layer.target!r} is also used elsewhere"
                if reason is not None:
                    rw.skip(reader, reason)
                    break
                scale_and_shift(module, *_AFFINE[reader.target](value_c))
                rw.bypass(reader, f"folded into {layer.target!r}", layer)
                reader = only_reader(layer)
        rw.erase_unread(rw.nodes(lambda node: node in stored and not writes_in_place(node)))


def _of_channels(rw: Rewriter, layer: Node, reader: Node, stored: Set[Node]) -> Tensor | None:
    """Return the stored operand of ``reader`` as (channels,), float64; None if it is no such operation."""
    if reader.target not in _AFFINE or reader.kwargs or len(reader.args) != 2:
        return None
    left, right = reader.args
    if left is not layer and reader.target in (operator.sub, operator.truediv):
        return None
    other, shape = (right if left is layer else left), shape_of(layer)
    if not isinstance(other, Node) or other not in stored or shape is None or shape_of(other) is None:
        return None
    size = shape_of(other) or ()
    # Of a convolution in front of the positions, with a batch before it or without.
    axis = len(shape) - 1 if kind(layer) == "linear" else len(shape) - rw.module(layer).weight.dim() + 1
    aligned = (*[1] * (len(shape) - len(size)), *size)
    if len(aligned) > len(shape) or any(one != 1 for place, one in enumerate(aligned) if place != axis):
        return None
    value = stored_value(rw, other)
    if value is None or value.dtype != rw.module(layer).weight.dtype:
        return None
    if reader.target is operator.truediv and bool((value == 0).any()):
        return None
    return value.double().flatten().expand(shape[axis])
