"""The range that a tensor's own values suggest is not always the one its readers want: ask them.

A narrower range clips the largest values and has finer steps for all others. Which of both matters, the weights behind
decide: candidates are shares of the fitted range, and what counts is the error of the outputs of the layers that read
the tensor, without its mean for each output channel, which a bias makes up for. Where no layer reads it, its own error
counts.

A range is narrowed only for a clear gain, with the range that one half of the samples suggests and the error of the
other half, both ways: values that calibration did not see need room.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from fxq import ANY, Pass, Rewriter, Stage, TensorQuantizer, register_pass
from fxq.graph import is_quantizer, is_weighted
from fxq_passes.accuracy.layer_matrix import LayerMatrix
from fxq_passes.accuracy.reader import FOLDS, Reader, ranged
from fxq_passes.accuracy.spectrum import Spectrum, reaches

_SHARES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


@dataclass
class _Seen:
    """What a quantizer reads: layers behind it, with samples, or else how its own values are spread.

    ``reach_h``: the share of the largest magnitude that each half of the samples has.
    """

    readers: list[Reader] = field(default_factory=list)
    values: list[Spectrum] = field(default_factory=list)
    reach_h: list[float] = field(default_factory=list)

    def error(self, quantizer: TensorQuantizer, half: int) -> float:
        """Return the error of all that reads the tensor on one half, each in terms of the power of what it wants."""
        total = sum(reader.error(quantizer, None, half) for reader in self.readers)
        return total + sum(one.error(quantizer, half) for one in self.values)


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
        chosen = rw.share_out(list(calls), lambda path: self._choose(rw.module(calls[path][0]), seen[path]))
        for nodes, choice in zip(calls.values(), chosen, strict=True):
            if choice is not None:
                share, error = choice
                quantizer = rw.module(nodes[0])
                low, high = quantizer.range
                quantizer.range = low * share, high * share
                why = f"range narrowed to {share:g} of what was fitted: its readers err {error:.2f} times as much"
                rw.edit(nodes[0], why)

    def _note(self, rw: Rewriter, node: Node, values: list[Tensor], seen: _Seen) -> None:
        matrices = [LayerMatrix.of(rw.module(reader)) if is_weighted(reader) else None for reader in node.users]
        seen.readers += [Reader(matrix, values, self.samples) for matrix in matrices if matrix is not None]
        if None in matrices:
            seen.values.append(Spectrum(values))
        found = reaches(values)
        seen.reach_h = [max(pair) for pair in zip(found, seen.reach_h or found, strict=True)]

    def _choose(self, quantizer: TensorQuantizer, seen: _Seen) -> tuple[float, float] | None:
        """Return the best share of the range, and the error with it in terms of that without; None to leave it."""
        largest = max(seen.reach_h)
        if largest == 0:
            return None
        best, least = 1.0, self.most_error
        start = [_judged(seen, quantizer, fold, seen.reach_h[fold[0]] / largest) for fold in FOLDS]
        for share in _SHARES:
            ratio = max(
                _judged(seen, quantizer, fold, share * seen.reach_h[fold[0]] / largest) / before
                for fold, before in zip(FOLDS, start, strict=True)
            )
            if ratio < least:
                best, least = share, ratio
        return None if best == 1.0 else (best, least)


def _is_fitted(quantizer: TensorQuantizer) -> bool:
    is_static = quantizer.calibrator is not None and quantizer.is_enabled and quantizer.has_range
    return is_static and quantizer.descriptor.axis is None and not bool(quantizer.is_zero.any())


def _judged(seen: _Seen, quantizer: TensorQuantizer, fold: tuple[int, int], share: float) -> float:
    """Return the error on the half to judge by with a share of the range; never 0."""
    low, high = quantizer.range
    return max(seen.error(ranged(quantizer, low * share, high * share), fold[1]), torch.finfo(torch.float32).tiny)
