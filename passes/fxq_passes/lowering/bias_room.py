"""Steps that leave a bias what it is: as an integer it counts in steps of input step x weight step.

A range of zeros has step 1 by convention, and rounds a small bias away; a tiny one has a step of which a bias takes
more than 32 bits. Runtimes make integers of float biases too (ONNX Runtime's WeightBiasQuantization). What the steps
become here costs nothing: a channel of zeros has the code 0 in any step, and a weight whose step is less than 2^-30 of
its bias counts for so little that rounding it does not show.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from fxq import Rewriter, TensorQuantizer
from fxq.graph import is_quantizer, weight_quantizers
from fxq.nn import WeightQuantized
from fxq_passes.lowering.qdq import is_on

_LARGEST_CODE = 2.0**30  # of a bias: the other half of int32 is for the sum of products that is added
_EXACT_CODE = 2.0**23  # of a bias that alone decides on the step: float32 holds such integers exactly
_SMALLEST_RANGE = 2.0**-23  # that is none of zeros


def make_room(rw: Rewriter, layers: Iterable[tuple[Node, WeightQuantized]]) -> None:
    """Widen ranges of zeros, and of weights that are next to nothing beside their bias; quantizers are modified."""
    ranges = _Ranges(rw)
    found = [(node, layer, _input_quantizer(rw, node, layer)) for node, layer in layers if _counts_in_steps(layer)]
    weights = [one for _, _, one in weight_quantizers(rw.gm) if _has_steps(one)]
    inputs = [reads for _, _, reads in found if reads is not None]
    if _have_room(weights, inputs, [layer.bias for _, layer, _ in found]):
        return  # as in most models
    for quantizer in weights:
        ranges.follow_neighbours(quantizer)
    for node, layer, reads in found:
        if reads is not None and ranges.of(layer.weight_quantizer).all_zero:
            least = ranges.bias_of(layer) / (ranges.of(reads).step * _EXACT_CODE)
            ranges.widen(node, layer.weight_quantizer, least)
    dead = [item for item in found if item[2] is not None and ranges.of(item[2]).all_zero]
    for node, layer, reads in dead:
        assert reads is not None
        step = (ranges.bias_of(layer) / ranges.of(layer.weight_quantizer).step.flatten()).max() / _EXACT_CODE
        # Several layers may read it; the first makes it a range, and the others have room in their weights below.
        if ranges.of(reads).all_zero:
            ranges.widen(node, reads, step)
    for node, layer, reads in found:
        if reads is not None:
            least = ranges.bias_of(layer) / (ranges.of(reads).step * _LARGEST_CODE)
            ranges.widen(node, layer.weight_quantizer, least)


def _has_steps(quantizer: TensorQuantizer) -> bool:
    return is_on(quantizer) and quantizer.has_range and quantizer.descriptor.block_size is None


def _have_room(weights: Sequence[TensorQuantizer], inputs: Sequence[TensorQuantizer], biases: Sequence[Any]) -> bool:
    """Return True where no range is of zeros, and the smallest steps would do for the largest bias: one look at all."""
    quantizers = [*weights, *inputs]
    tensors = [*(one.bounds[0] for one in quantizers), *biases]
    is_one_place = len({tensor.device for tensor in tensors}) == 1
    if not (weights and inputs and biases and is_one_place and all(one.descriptor.symmetric for one in quantizers)):
        return False
    of_weights, of_inputs, of_biases = (
        torch.cat([tensor.detach().flatten().float() for tensor in group])
        for group in (tensors[: len(weights)], tensors[len(weights) : len(quantizers)], biases)
    )
    smallest = float(of_weights.min()), float(of_inputs.min())
    hi = max(one.maxbound for one in quantizers)
    # Half of the codes: the layers themselves are asked in float32, which rounds.
    most = smallest[0] / hi * (smallest[1] / hi) * _LARGEST_CODE / 2
    return min(smallest) > _SMALLEST_RANGE and float(of_biases.abs().max()) <= most


class _Range(NamedTuple):
    """Steps of a quantizer, and which of its ranges hold nothing but zeros."""

    step: Tensor
    is_zero: Tensor
    any_zero: bool
    all_zero: bool


class _Ranges:
    """Ranges of quantizers, each computed once until it is stored anew."""

    def __init__(self, rw: Rewriter) -> None:
        self._rw = rw
        self._known: dict[TensorQuantizer, _Range] = {}

    def of(self, quantizer: TensorQuantizer) -> _Range:
        """Return the range of a quantizer, which has one."""
        if quantizer not in self._known:
            is_zero = quantizer.is_zero
            any_zero = bool(is_zero.any())
            self._known[quantizer] = _Range(quantizer.scale, is_zero, any_zero, any_zero and bool(is_zero.all()))
        return self._known[quantizer]

    def bias_of(self, layer: WeightQuantized) -> Tensor:
        """Return the largest |bias| for each step of the weight, (steps,); groups of a transposed one share steps."""
        assert isinstance(layer.bias, Tensor)
        bias, steps = layer.bias.detach().abs().float(), self.of(layer.weight_quantizer).step.numel()
        return bias.reshape(-1, steps).amax(0) if len(bias) % steps == 0 else bias.max().expand(steps)

    def follow_neighbours(self, quantizer: TensorQuantizer) -> None:
        """Give channels of zeros the smallest step of the others, where there are others."""
        found = self.of(quantizer)
        if found.any_zero and not found.all_zero:
            least = torch.maximum(found.step[~found.is_zero].min(), _least_step(quantizer))
            self._store(quantizer, torch.where(found.is_zero, least, found.step))

    def widen(self, node: Node, quantizer: TensorQuantizer, least: Tensor) -> None:
        """Make each step at least ``least``; a range of zeros gets that step, if it is not 0."""
        found = self.of(quantizer)
        old = found.step
        least = least.to(old.device).reshape(old.shape)
        if not found.any_zero and bool((least <= old).all()):
            return
        own = torch.where(found.is_zero & (least > 0), _least_step(quantizer), old)
        new = torch.maximum(own, least)
        if bool((new != old).any()):
            self._store(quantizer, new)
            why = f"the range of {quantizer.owner} is widened: its bias is to fit 32 bits, and to be no mere zero"
            self._rw.edit(node, why)

    def _store(self, quantizer: TensorQuantizer, step: Tensor) -> None:
        del self._known[quantizer]
        lo, hi = quantizer.descriptor.bounds
        if quantizer.descriptor.symmetric:
            quantizer.amax = step * hi
        else:
            low = quantizer.range[0].clamp(max=0)
            quantizer.range = (low, low + step * (hi - lo))


def _least_step(quantizer: TensorQuantizer) -> Tensor:
    """Return the smallest steps for ranges of zeros; what is too small to have a range of its own is 0 in them too."""
    low, high = quantizer.range
    largest = torch.maximum(low.abs(), high.abs())
    return (2 * largest).clamp(min=_SMALLEST_RANGE / quantizer.maxbound)  # half a step is rounded to 0


def _counts_in_steps(layer: WeightQuantized) -> bool:
    quantizer = layer.weight_quantizer
    descriptor = quantizer.descriptor
    is_integer = is_on(quantizer) and not descriptor.is_float8 and descriptor.block_size is None
    return is_integer and isinstance(getattr(layer, "bias", None), Tensor)  # an embedding has none


def _input_quantizer(rw: Rewriter, node: Node, layer: WeightQuantized) -> TensorQuantizer | None:
    """Return the quantizer with the range of what the layer reads, None where it has none."""
    found = layer.input_quantizer
    source = node.all_input_nodes[0]
    if (found is None or not is_on(found)) and is_quantizer(source):
        found = rw.module(source)
    return found if is_on(found) and found.has_range and not found.descriptor.is_float8 else None
