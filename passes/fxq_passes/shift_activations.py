"""A non-negative tensor in a symmetric format leaves half of the codes unused: shift it, and it uses them all.

``W x + b = W (x - a) + (b + a sum(W))``. With ``a = amax / 2`` the values of [0, amax] become [-a, a], in steps half as
large. The subtraction goes into the bias before the rectifier, whose bounds move along, and the constant into the bias
of each layer behind it: nothing is computed at run time. A padded convolution is left out: its padding stands for
x = 0, which the shifted tensor has as -a.

The method is ours, measured in the issue of the accuracy passes; a runtime with zero points has no need of it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from fxq import ANY, Pass, Rewriter, Stage, register_pass
from fxq.graph import MOVES_DATA, is_quantizer, is_weighted, kind, only_reader
from fxq_passes.accuracy.channel_groups import UsableLayers, is_clip_at_zero
from fxq_passes.accuracy.layer_matrix import LayerMatrix

_POOLS = frozenset({"max_pool", "avg_pool", "adaptive_avg_pool", "global_avg_pool"})
_RECTIFIERS = frozenset({"relu", "relu6", "clip"})


@dataclass(frozen=True)
class _Place:
    """A rectified tensor that can be shifted: the layer before it, the rectifier, its quantizer, and who reads it.

    Where it ``is_averaged`` before the quantizer, its values may lie beyond the range.
    """

    producer: Node
    rectifier: Node
    quantizer: Node
    readers: list[Node]
    is_averaged: bool


@register_pass("shift_activations")
@dataclass(frozen=True)
class ShiftActivations(Pass):
    """Shift rectified tensors to the middle of a symmetric range, where unpadded layers alone read them."""

    stage = Stage.CALIBRATED
    tolerance = ANY
    improves = True
    keeps_ranges = True

    def run(self, rw: Rewriter) -> None:
        """Shift each tensor that can be, by half its range as it was calibrated."""
        usable, readers = UsableLayers(rw), list[tuple[Node, float]]()
        for place in list(_places(rw, usable)):
            quantizer = rw.module(place.quantizer)
            shift = float(quantizer.amax) / 2
            if shift <= 0:
                continue
            why = f"shifted by {shift:.4g}, so that the range uses all codes"
            quantizer.use_calibrator(quantizer.descriptor.calibrator)  # what was seen is not where the tensor is now
            quantizer.amax = shift
            rw.edit(place.quantizer, f"half the range: its tensor is {why}")
            _add_to_bias(rw, place.producer, -shift, why)
            rw.replace_module(str(place.rectifier.target), _shifted(rw, place, shift), why)
            for reader in place.readers:
                _add_to_bias(rw, reader, shift * _sums(rw.module(reader).weight), f"its input is {why}")
                readers.append((reader, shift))
        # Last, since it is no part of the equivalent rewrite: what reads one tensor may make the next one.
        for reader, shift in readers:
            _make_up_for_rounding(rw, reader, shift)


def _shifted(rw: Rewriter, place: _Place, shift: float) -> nn.Hardtanh:
    """Return the rectifier of the shifted tensor; its upper bound is where the range ends, unless means are taken."""
    rectifier = rw.module(place.rectifier)
    if not place.is_averaged:
        return nn.Hardtanh(-shift, shift)
    return nn.Hardtanh(-shift, getattr(rectifier, "max_val", math.inf) - shift)


def _places(rw: Rewriter, usable: UsableLayers) -> Iterator[_Place]:
    for node in rw.nodes(is_quantizer):
        quantizer = rw.module(node)
        descriptor = quantizer.descriptor
        if descriptor.unsigned or not descriptor.symmetric or descriptor.is_float8 or descriptor.axis is not None:
            continue
        if quantizer.calibrator is None or not quantizer.has_range or not quantizer.is_enabled:
            continue
        rectifier = _rectifier_before(rw, node)
        if rectifier is None:
            continue
        producer, readers = rectifier.all_input_nodes[0], list(node.users)
        reason = _why_not(rw, usable, producer, rectifier, node, readers)
        if reason is None:
            yield _Place(producer, rectifier, node, readers, _is_averaged(rectifier, node))
        else:
            rw.skip(rectifier, f"not shifted: {reason}")


def _is_averaged(rectifier: Node, quantizer: Node) -> bool:
    step = quantizer.all_input_nodes[0]
    while step is not rectifier and kind(step) in MOVES_DATA | {"max_pool"}:
        step = step.all_input_nodes[0]
    return step is not rectifier


def _rectifier_before(rw: Rewriter, node: Node) -> Node | None:
    """Return the rectifier whose output the quantizer reads, pooled or reshaped at most, None where there is none."""
    source = node.all_input_nodes[0]
    while kind(source) in _POOLS | {"reshape", "mean"}:
        if len(source.all_input_nodes) != 1:
            return None
        source = source.all_input_nodes[0]
    if source.op != "call_module" or kind(source) not in _RECTIFIERS:
        return None
    module = rw.module(source)
    return source if isinstance(module, nn.ReLU) or is_clip_at_zero(module) else None


def _why_not(
    rw: Rewriter, usable: UsableLayers, producer: Node, rectifier: Node, quantizer: Node, readers: list[Node]
) -> str | None:
    step = rectifier
    while step is not quantizer:
        following = only_reader(step)
        if following is None:
            return f"more than one operation reads {step.name!r}"
        if kind(following) == "avg_pool" and _is_padded(rw, following):
            return f"{following.name!r} pads with zeros"
        step = following
    if usable.calls[str(rectifier.target)] > 1 or usable.calls[str(quantizer.target)] > 1:
        return "its rectifier or quantizer is called more than once"
    if not is_weighted(producer) or only_reader(producer) is None:
        return f"no layer of its own computes it, but {producer.name!r}"
    for node in (producer, *readers):
        if not is_weighted(node):
            return f"{node.name!r} reads it, and has no bias to take the shift back"
        if (reason := usable.why_not(node)) is not None:
            return reason
    padded = next((node for node in readers if _pads(rw, node)), None)
    return f"{padded.name!r} pads it with zeros" if padded is not None else None


def _pads(rw: Rewriter, node: Node) -> bool:
    matrix = LayerMatrix.of(rw.module(node))
    return matrix is None or matrix.is_padded


def _is_padded(rw: Rewriter, node: Node) -> bool:
    if node.op != "call_module":
        return True
    padding: Any = rw.module(node).padding
    return any(padding) if isinstance(padding, tuple) else bool(padding)


def _make_up_for_rounding(rw: Rewriter, node: Node, shift: float) -> None:
    """Take back what the shift adds to the outputs of a layer whose weights are rounded."""
    layer: Any = rw.module(node)
    quantizer = getattr(layer, "weight_quantizer", None)
    if quantizer is not None and quantizer.is_enabled:
        rounding = shift * (_sums(layer.weight) - _sums(layer.quantized_weight()))
        rw.set_bias(str(node.target), layer.bias.detach() - rounding, "the shift times what rounding adds")


def _sums(weight: Tensor) -> Tensor:
    """Return the sum of the weights of each output channel, added up in float64."""
    return weight.detach().double().flatten(1).sum(1).to(weight.dtype)


def _add_to_bias(rw: Rewriter, node: Node, value: Tensor | float, why: str) -> None:
    layer = rw.module(node)
    bias = layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach()
    rw.set_bias(str(node.target), bias + value, why, is_equivalent=True)
