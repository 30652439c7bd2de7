"""The range that a tensor's own values suggest is not always the one its readers want: ask them.

A narrower range clips the largest values and has finer steps for all others. Which of both matters, the weights behind
decide: candidates are shares of the fitted range, and what counts is the error of the outputs of the layers that read
the tensor, without its mean for each output channel, which a bias makes up for. Where no layer reads it, its own error
counts.

A range is narrowed only for a clear gain, on both halves of the samples: values that calibration did not see need room.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from fxq import ANY, Pass, Rewriter, Stage, TensorQuantizer, register_pass
from fxq.graph import is_quantizer, is_weighted
from fxq_passes.accuracy.channel_scales import Reader, ranged
from fxq_passes.accuracy.layer_matrix import LayerMatrix

_SHARES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


@dataclass
class _Seen:
    """What a quantizer reads: layers behind it, with samples, or else values of its own."""

    readers: list[Reader] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


@register_pass("refine_ranges")
@dataclass(frozen=True)
class RefineRanges(Pass):
    """Narrow the ranges of activations whose readers err less for it.

    Args:
        most_error: narrow a range where that brings the error of its readers below this share.
        samples: positions of a layer's input to judge by.
    """

    stage = Stage.CALIBRATED
    tolerance = ANY
    improves = True
    keeps_ranges = True
    most_error: float = 0.9
    samples: int = 512

    def run(self, rw: Rewriter) -> None:
        """Look at all quantized activations in one walk through the float model, then choose each range."""
        calls: dict[str, list[Node]] = {}
        for node in rw.nodes(is_quantizer):
            if _is_fitted(rw.module(node)):
                calls.setdefault(str(node.target), []).append(node)
        wanted = {node for nodes in calls.values() for node in nodes}
        seen = {path: _Seen() for path in calls}
        for node, values in rw.run_float(wanted):
            self._note(rw, node, values, seen[str(node.target)])
        for path, nodes in calls.items():
            self._choose(rw, nodes[0], seen[path])

    def _note(self, rw: Rewriter, node: Node, values: list[Tensor], seen: _Seen) -> None:
        layers = [reader for reader in node.users if is_weighted(reader)]
        for layer in layers:
            matrix = LayerMatrix.of(rw.module(layer))
            if matrix is not None:
                seen.readers.append(Reader(matrix, matrix.sample(values, self.samples)))
        if len(layers) < len(node.users):
            seen.values.append(_drawn(values, self.samples))

    def _choose(self, rw: Rewriter, node: Node, seen: _Seen) -> None:
        quantizer = rw.module(node)
        low, high = quantizer.range
        start = _error(seen, quantizer)
        best, least = 1.0, self.most_error
        for share in _SHARES:
            ratio = float((_error(seen, ranged(quantizer, low * share, high * share)) / start).max())
            if ratio < least:
                best, least = share, ratio
        if best == 1.0:
            return
        quantizer.range = low * best, high * best
        rw.edit(node, f"range narrowed to {best:g} of what was fitted: its readers err {least:.2f} times as much")


def _is_fitted(quantizer: TensorQuantizer) -> bool:
    is_static = quantizer.calibrator is not None and quantizer.is_enabled and quantizer.has_range
    return is_static and quantizer.descriptor.axis is None and not bool(quantizer.is_zero.any())


def _error(seen: _Seen, quantizer: TensorQuantizer) -> Tensor:
    """Return the error of all that reads the tensor, each over the power of what it wants, by halves: (2,)."""
    ones = [reader.error(quantizer, torch.ones_like(reader.weight_reach())) for reader in seen.readers]
    own = [_own_error(value, quantizer) for value in seen.values]
    total = torch.stack([*ones, *own]).sum(0)
    return total.clamp(min=torch.finfo(total.dtype).tiny)


def _own_error(value: Tensor, quantizer: TensorQuantizer) -> Tensor:
    errors = (quantizer(value) - value).square()
    power = value.square().sum().clamp(min=torch.finfo(value.dtype).tiny)
    return torch.stack([half.sum() for half in errors.tensor_split(2)]) / power


def _drawn(values: Sequence[Tensor], count: int) -> Tensor:
    """Return values of all batches, evenly spaced: (values,)."""
    most = count * 64
    flat = [value.detach().flatten() for value in values]
    step = max(1, sum(map(len, flat)) // most)
    return torch.cat([one[::step] for one in flat])
