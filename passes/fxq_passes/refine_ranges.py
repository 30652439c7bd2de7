"""The range that a tensor's own values suggest is not always the one its readers want: ask them.

A narrower range clips the largest values and has finer steps for all others. Which of both matters, the weights behind
decide: candidates are shares of the fitted range, and what counts is the error of the outputs of the layers that read
the tensor, without its mean for each output channel, which a bias makes up for. Where no layer reads it, its own error
counts. Where an activation in float or a softmax reads it, what counts is the error behind that: a hard swish lets
nothing below -3 through, so that the lower end may move up without the upper one. Without an activation both ends of an
affine range move together first, and then each alone.

A range is narrowed only for a clear gain, with the range that one half of the samples suggests and the error of the
other half, both ways: values that calibration did not see need room.

No range may do for scores, where an integer kernel that writes codes computes them: of 256 codes for -730 to 1190
(the scores of PESTO, a network for pitch) each makes a class 1800 times as likely as the one before. Where softmax
still errs by 1 % of the power of what it gives, both compute in float. With scores up to some 20 it errs by 0.1 %.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.fx import Node

from fxq import ANY, Pass, Rewriter, Stage, TensorQuantizer, register_pass
from fxq.graph import (
    MOVES_DATA,
    inserted_for,
    is_quantizer,
    is_weighted,
    kind,
    planned_inputs,
    planned_output,
    shape_of,
)
from fxq.graph.observers import ranged
from fxq_passes.accuracy.elementwise import activations_behind
from fxq_passes.accuracy.layer_matrix import LayerMatrix
from fxq_passes.accuracy.options import check_numbers
from fxq_passes.accuracy.reader import FOLDS, Reader, worst_ratio
from fxq_passes.accuracy.softmax_reader import SoftmaxReader
from fxq_passes.accuracy.spectrum import Spectrum, reaches

_SHARES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
# From twice the error on, what clips alone costs more than all did before, and narrower ranges clip more.
_MOST_OF_INTEREST = 2.0
_SHARES_BEFORE_ACTIVATION = (*_SHARES, 0.15, 0.1, 0.07, 0.05, 0.03)


@dataclass
class _Seen:
    """What a quantizer reads: layers behind it, with samples, or else how its own values are spread.

    Args:
        reach_h: how far each half of the samples reaches below and above 0.
        has_activation: an activation in float, or a softmax, reads it.
    """

    readers: list[Reader] = field(default_factory=list)
    softmaxes: list[SoftmaxReader] = field(default_factory=list)
    values: list[Spectrum] = field(default_factory=list)
    reach_h: list[tuple[float, float]] = field(default_factory=list)
    has_activation: bool = False

    @property
    def is_scores(self) -> bool:
        """Do softmaxes alone read the tensor?"""
        return bool(self.softmaxes) and not (self.readers or self.values)

    def error(self, quantizer: TensorQuantizer, half: int) -> float:
        """Return the error of all that reads the tensor on one half, each in terms of the power of what it wants."""
        total = sum(reader.error(quantizer, None, half) for reader in self.readers)
        total += sum(one.error(quantizer, half) for one in self.softmaxes)
        return total + sum(one.error(quantizer, half) for one in self.values)

    @property
    def reach(self) -> tuple[float, float]:
        """How far all samples reach below and above 0."""
        low, high = (max(ends) for ends in zip(*self.reach_h, strict=True))
        return low, high


@register_pass("refine_ranges")
@dataclass(frozen=True)
class RefineRanges(Pass):
    """Narrow the ranges of activations whose readers err less for it.

    Args:
        most_error: narrow a range where that brings the error of its readers below this share: what finer steps gain
            is small against what values cost that few samples have, and they clip.
        most_error_before_activation: the same where an activation reads it, which clips them anyway.
        most_error_of_shares: leave scores in float where what a softmax makes of them errs by a larger part of its
            power with the best range.
        samples: positions of a layer's input to judge by.
    """

    stage = Stage.CALIBRATED
    tolerance = ANY
    improves = True
    keeps_ranges = True
    most_error: float = 0.75
    most_error_before_activation: float = 0.9
    most_error_of_shares: float = 0.01
    samples: int = 512

    def __post_init__(self) -> None:
        check_numbers(self)

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
            del values  # or the walk could not reuse its memory
        found = rw.share_out(list(calls), lambda path: self._judge(rw.module(calls[path][0]), seen[path]))
        for nodes, (choice, error_of_shares) in zip(calls.values(), found, strict=True):
            if choice is not None:
                shares, error = choice
                quantizer = rw.module(nodes[0])
                low, high = quantizer.range
                quantizer.range = low * shares[0], high * shares[1]
                ends = " and ".join(f"{share:g}" for share in dict.fromkeys(shares))
                why = f"range narrowed to {ends} of what was fitted: its readers err {error:.2f} times as much"
                rw.edit(nodes[0], why)
            if error_of_shares > self.most_error_of_shares and inserted_for(nodes[0]):  # by hand is by will
                self._leave_in_float(rw, nodes, error_of_shares)

    def _leave_in_float(self, rw: Rewriter, nodes: list[Node], error: float) -> None:
        """Leave scores in float, with what computes them and the softmaxes that read them."""
        why = f"with the best range for its scores softmax errs by {error:.1%} of the power of what it gives"
        rw.leave_in_float(nodes[0], why)
        for softmax in [reader for node in nodes for reader in node.users if kind(reader) == "softmax"]:
            if planned_inputs(softmax) or planned_output(softmax):
                rw.leave_in_float(softmax, why)

    def _note(self, rw: Rewriter, node: Node, values: list[Tensor], seen: _Seen) -> None:
        behind = activations_behind(rw, node)
        readers = [] if behind is None else behind.readers(values, self.samples)
        seen.has_activation |= bool(readers)
        if not readers:
            outer = [reader for reader in node.users if not _leads_back(reader, node)]
            dims = [_softmax_dim(rw, reader) for reader in outer]
            seen.softmaxes += [SoftmaxReader(values, dim, self.samples) for dim in dims if dim is not None]
            seen.has_activation |= bool(seen.softmaxes)
            outer = [reader for reader, dim in zip(outer, dims, strict=True) if dim is None]
            matrices = [LayerMatrix.of(rw.module(reader)) if is_weighted(reader) else None for reader in outer]
            readers = [Reader(matrix, values, self.samples) for matrix in matrices if matrix is not None]
            if None in matrices:
                seen.values.append(Spectrum(values))
        seen.readers += readers
        found = reaches(values)
        seen.reach_h = [
            (max(one[0], other[0]), max(one[1], other[1]))
            for one, other in zip(found, seen.reach_h or found, strict=True)
        ]

    def _judge(self, quantizer: TensorQuantizer, seen: _Seen) -> tuple[tuple[tuple[float, float], float] | None, float]:
        """Return what :meth:`_choose` does, and how much softmaxes err with it in terms of their power, if alone."""
        choice = self._choose(quantizer, seen)
        if not seen.is_scores:
            return choice, 0.0
        (lower, upper), (low, high) = choice[0] if choice else (1.0, 1.0), quantizer.range
        best = ranged(quantizer, low * lower, high * upper)
        return choice, max(seen.error(best, half) for half in range(2))

    def _choose(self, quantizer: TensorQuantizer, seen: _Seen) -> tuple[tuple[float, float], float] | None:
        """Return the best shares of both ends, and the error with them in terms of that without; None to leave both."""
        reach = seen.reach
        if not any(reach):
            return None
        best, least = (1.0, 1.0), 1.0
        start = [_judged(seen, quantizer, best, fold) for fold in FOLDS]
        for moves in _moves(quantizer, seen):
            kept = best
            for share in _SHARES_BEFORE_ACTIVATION if seen.has_activation else _SHARES:
                shares = (share if moves[0] else kept[0], share if moves[1] else kept[1])
                ratio = worst_ratio(partial(_judged, seen, quantizer, shares), start, least)
                if ratio < least:
                    best, least = shares, ratio
                if ratio >= _MOST_OF_INTEREST:
                    break
        most = self.most_error_before_activation if seen.has_activation else self.most_error
        return (best, least) if least < most else None


def _moves(quantizer: TensorQuantizer, seen: _Seen) -> tuple[tuple[bool, bool], ...]:
    """Return which ends of the range to move together, one after the other.

    An activation may not tell values apart at one end, or a layer read little of what reaches far there, which is no
    reason to clip the other.
    """
    both = ((True, True),)
    if quantizer.descriptor.symmetric:
        return both
    low, high = seen.reach
    each = tuple(ends for ends, reach in (((True, False), low), ((False, True), high)) if reach)
    return each if seen.has_activation or len(each) == 1 else both + each


def _leads_back(reader: Node, node: Node) -> bool:
    """Return whether ``reader`` moves what the quantizer ``node`` gives to nothing but further calls of it."""
    return kind(reader) in MOVES_DATA and all(user.target == node.target for user in reader.users)


def _softmax_dim(rw: Rewriter, node: Node) -> int | None:
    """Return the dimension of a softmax, from the end; None for others, and for one over samples."""
    shape = shape_of(node) if kind(node) == "softmax" and node.op == "call_module" else None
    dim = getattr(rw.module(node), "dim", None) if shape else None
    if not shape or not isinstance(dim, int):
        return None
    from_end = dim % len(shape) - len(shape)
    return from_end if from_end > -len(shape) else None


def _is_fitted(quantizer: TensorQuantizer) -> bool:
    is_static = quantizer.calibrator is not None and quantizer.is_enabled and quantizer.has_range
    return is_static and quantizer.descriptor.axis is None and not bool(quantizer.is_zero.any())


def _judged(seen: _Seen, quantizer: TensorQuantizer, shares: tuple[float, float], fold: tuple[int, int]) -> float:
    """Return the error on the half to judge by with shares of the range that the other one suggests; never 0.

    The range may cover samples that are not kept, or held out. What they reach is no room to narrow it.
    """
    learned, every = seen.reach_h[fold[0]], seen.reach
    if quantizer.descriptor.symmetric:
        learned, every = (max(learned), max(learned)), (max(every), max(every))
    low, high = (
        bound * share * (one / max(most, float(bound.abs())) if most else 1.0)
        for bound, share, one, most in zip(quantizer.range, shares, learned, every, strict=True)
    )
    return max(seen.error(ranged(quantizer, low, high), fold[1]), torch.finfo(torch.float32).tiny)
