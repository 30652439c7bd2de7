"""Weights are rounded for what their layers read, and not each to its nearest code.

Layer by layer in execution order, on the inputs that the layers before it give, which are rounded already. See
``accuracy/rounding.py``. What counts is the covariance of the inputs: an error that is the same for all of them the
bias makes up for, here and now. A rounding is kept where it has the lower error on positions that it was not made
from. The inputs of very wide layers are taken in pieces that know nothing of each other: the cost grows with the cube.
Weights of inputs that never vary are rounded to nearest.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxq import ANY, Pass, Rewriter, Stage, register_pass
from fxq.graph import is_weighted
from fxq.nn import WeightQuantized
from fxq_passes.accuracy.channel_groups import UsableLayers
from fxq_passes.accuracy.layer_matrix import LayerMatrix
from fxq_passes.accuracy.rounding import Grid, error, round_for_inputs

_CHUNK = 1024  # positions at a time: patches are as many times larger than the input as the kernel has taps
_POSITIONS_PER_INPUT, _FEWEST, _MOST = 4, 2048, 16384
_WIDEST = 2048  # inputs of a piece
_JUDGING_SEED = 1000


@dataclass(frozen=True)
class _Covariances:
    """Of the inputs of one layer, by group and piece, (groups, inputs, inputs).

    Args:
        learned: to round by.
        judging: of other positions, to judge by.
        mean: of the inputs, (groups, inputs).
    """

    learned: Tensor
    judging: Tensor
    mean: Tensor


@register_pass("round_weights")
@dataclass(frozen=True)
class RoundWeights(Pass):
    """Round each weight for the inputs of its layer (GPTQ), within the range that it has."""

    stage = Stage.CALIBRATED
    tolerance = ANY
    improves = True
    keeps_ranges = True

    def run(self, rw: Rewriter) -> None:
        """Round the convolutions and linear layers whose weights are integers, or say why not."""
        usable = UsableLayers(rw)
        layers: dict[Node, list[Node]] = {}  # by what they read
        for node in rw.nodes(is_weighted):
            reason = _why_not(rw.module(node)) or usable.why_not(node)
            if reason is None:
                layers.setdefault(node.all_input_nodes[0], []).append(node)
            else:
                rw.skip(node, f"rounded to nearest: {reason}")
        chosen = {node for nodes in layers.values() for node in nodes}
        seen: dict[Node, _Covariances] = {}
        for node, (_, values) in rw.run_both({*layers, *chosen}):
            if node in chosen:
                _round(rw, node, seen.pop(node))
            for layer in layers.get(node, ()):
                seen[layer] = _covariances(rw.module(layer), values)


def _why_not(layer: Any) -> str | None:
    if not isinstance(layer, WeightQuantized) or not layer.weight_quantizer.is_enabled:
        return "its weight is not quantized"
    quantizer = layer.weight_quantizer
    if quantizer.descriptor.is_float8:
        return "its weight is float8, whose steps are no grid"
    return None if quantizer.has_range else "its weight has no range"


def _covariances(layer: Any, values: list[Tensor]) -> _Covariances:
    """Return what the positions drawn say of the inputs of ``layer``, quantized as they will be."""
    if layer.input_quantizer is not None:
        values = [layer.input_quantizer(value) for value in values]
    matrix = LayerMatrix.of(layer)
    assert matrix is not None
    inputs = layer.weight[0].numel()
    count = min(max(_POSITIONS_PER_INPUT * inputs, _FEWEST), _MOST)
    learned, mean = _covariance(matrix, values, count, 0)
    return _Covariances(learned, _covariance(matrix, values, count // 4, _JUDGING_SEED)[0], mean)


def _covariance(matrix: LayerMatrix, values: list[Tensor], count: int, first_seed: int) -> tuple[Tensor, Tensor]:
    groups, inputs = matrix.groups * _pieces(matrix), matrix.layer.weight[0].numel() // _pieces(matrix)
    weight, positions = matrix.layer.weight, 0
    products = weight.new_zeros(groups, inputs, inputs, dtype=torch.float32)
    sums = weight.new_zeros(groups, inputs, dtype=torch.float32)
    origin = None
    for seed in range(first_seed, first_seed + -(-count // _CHUNK)):
        sampled = matrix.sample(values, _CHUNK, seed).float()
        read = sampled.reshape(len(sampled), groups, inputs).transpose(0, 1)  # (groups, positions, inputs)
        # Less one of them, what never varies has a variance of 0, and not what is left of a difference of large sums.
        origin = read[:, :1] if origin is None else origin
        read = read - origin
        products += read.mT @ read
        sums += read.sum(1)
        positions += read.shape[1]
    mean = sums / positions
    assert origin is not None
    return products / positions - mean.unsqueeze(2) * mean.unsqueeze(1), mean + origin.squeeze(1)


def _pieces(matrix: LayerMatrix) -> int:
    """Return into how many pieces of whole channels the inputs of the layer are taken apart."""
    channels = matrix.layer.weight.shape[1]
    most = _WIDEST * channels // matrix.layer.weight[0].numel()
    return next(
        count for count in range(1, channels + 1) if channels % count == 0 and channels // count <= max(most, 1)
    )


def _taken_apart(matrix: LayerMatrix, weight: Tensor) -> Tensor:
    """Return (groups * pieces, outputs, inputs of a piece) of a weight in the form of the matrix."""
    pieces = _pieces(matrix)
    groups, outputs, inputs = weight.shape
    return weight.reshape(groups, outputs, pieces, inputs // pieces).transpose(1, 2).flatten(0, 1)


def _put_together(matrix: LayerMatrix, weight: Tensor) -> Tensor:
    """The reverse of :func:`_taken_apart`, in the layer's shape."""
    apart = weight.reshape(matrix.groups, -1, *weight.shape[1:])  # (groups, pieces, outputs, inputs of a piece)
    whole: Tensor = apart.transpose(1, 2).reshape(matrix.layer.weight.shape)
    return whole


def _round(rw: Rewriter, node: Node, seen: _Covariances) -> None:
    layer = rw.module(node)
    matrix = LayerMatrix.of(layer)
    assert matrix is not None
    weight, nearest, scale, zero_point = (
        _taken_apart(matrix, one.float()) for one in (
            matrix.weight(layer.weight), matrix.weight(layer.quantized_weight()), *_grid(matrix)
        )
    )  # fmt: skip
    qparams = layer.weight_quantizer.qparams()
    rounded = round_for_inputs(weight, seen.learned, Grid(scale, zero_point, qparams.lo, qparams.hi))
    if rounded is None:
        rw.skip(node, "rounded to nearest: the covariance of its inputs has no inverse")
        return
    before, after = error(weight, nearest, seen.judging), error(weight, rounded, seen.judging)
    rounded = torch.where((after < before).unsqueeze(-1), rounded, nearest)
    kept = torch.minimum(after, before).sum()
    if not bool(kept < before.sum()):
        rw.skip(node, "rounded to nearest: no rounding has a lower error")
        return
    why = f"rounded for its inputs: {float(kept / before.sum()):.2f} of the error of rounding to nearest"
    shift = ((nearest - rounded) @ seen.mean.unsqueeze(2)).squeeze(2)  # (groups * pieces, outputs)
    shift_c = shift.reshape(matrix.groups, -1, shift.shape[1]).sum(1).flatten()  # c: output channels
    value = _put_together(matrix, rounded).to(layer.weight.dtype)
    rw.set_weight(str(node.target), value, why, keep_range=True)
    shift_c = shift_c.to(layer.weight.dtype)
    bias_c = shift_c if layer.bias is None else layer.bias.detach() + shift_c
    rw.set_bias(str(node.target), bias_c, "leaves the mean output as it was")


def _grid(matrix: LayerMatrix) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of each weight, in the form of the matrix: (groups, outputs, inputs)."""
    weight = matrix.weight(matrix.layer.weight)
    qparams = matrix.layer.weight_quantizer.qparams()
    scale, zero_point = qparams.scale, qparams.zero_point
    if qparams.block_size is not None:
        scale, zero_point = (
            one.repeat_interleave(qparams.block_size, 1)[:, : weight.shape[-1]] for one in (scale, zero_point)
        )
        shape = tuple(weight.shape)
    else:
        shape = (weight.shape[0], weight.shape[1], 1) if scale.numel() > 1 else (1, 1, 1)
    return scale.reshape(shape).expand_as(weight), zero_point.reshape(shape).expand_as(weight)
