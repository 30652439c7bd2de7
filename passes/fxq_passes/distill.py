"""Biases and ranges are trained until the quantized model says what the float model says: knowledge distillation.

No labels are needed: the float model, on the samples that calibration kept, is the teacher. What the model returns
counts, and what its blocks return beside it: the outputs of residual adds, and where there are none, of the layers.

Few samples are kept, so little is trained, and slowly: for each channel a bias, for each range a factor; Adam moves
them by a part in a thousand of the channel's deviation, or in ten thousand of the range, at each step. Ranges that move
five times as fast made the blocks of CREPE, a network for pitch, worse. Nor is a sample drawn often: with 56 frames
CREPE on TensorRT gained 1.2 dB on others in nine rounds, and lost 0.8 in 28.

The codes of weights are trained only where ``weight_rate`` asks for it: there are as many as weights, all of them reach
the boundary at about the same time, and in the steps that minutes allow that rarely ends well. See
``accuracy/student.py`` for what is trained, and ``accuracy/training.py`` for how.

Sources: Hinton et al. 2015, arXiv:1503.02531; Li et al. 2021, arXiv:2102.05426 (blocks); Esser et al. 2020,
arXiv:1902.08153 (ranges).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from fxq import ANY, Pass, Rewriter, Stage, TensorQuantizer, register_pass
from fxq.graph import MOVES_DATA, is_quantizer, is_weighted, kind, shape_of, tensor_edges, writes_in_place
from fxq.nn import WeightQuantized, computed_tensors
from fxq_passes.accuracy.channel_groups import UsableLayers
from fxq_passes.accuracy.minibatches import Minibatches, pooled
from fxq_passes.accuracy.options import check_numbers
from fxq_passes.accuracy.student import StandIn, TrainedLayer, TrainedRange, Walk
from fxq_passes.accuracy.training import Distillation, Group

_FEWEST_SAMPLES, _FEWEST_STEPS = 24, 20  # a bias for each channel learns fewer by heart
_FORWARDS = 4  # a step: the float model, the quantized one, and the gradient, which costs two
_OVERHEAD = 64  # multiplications that an element of a layer's output costs beside its own: quantizers, rectifiers

_KEEPS_LOWEST = MOVES_DATA | {"max_pool", "avg_pool", "adaptive_avg_pool", "global_avg_pool", "mean"}


@dataclass
class _Student:
    """What can be trained, by path, and what one sample costs in multiplications."""

    layers: dict[str, TrainedLayer] = field(default_factory=dict)
    ranges: dict[str, TrainedRange] = field(default_factory=dict)
    cost: float = 0.0

    @property
    def stand_ins(self) -> dict[str, StandIn]:
        return {**self.layers, **self.ranges}


@register_pass("distill")
@dataclass(frozen=True)
class Distill(Pass):
    """Train biases and ranges of the quantized model to say what the float model says on the kept samples.

    Args:
        budget: what to spend, in 1e9 multiplications (a core does some 10 to 50 in a second); it decides how many steps
            are made, at most ``max_steps``. The result depends on it, and not on how fast the machine is.
        max_steps: at most so many.
        max_rounds: how often a sample is drawn at most, on average; images that are mirrored or cut are new samples
            each time, and drawn three times as often.
        batch: samples of a step.
        bias_rate: how far a step moves a bias at most, in deviations of its channel.
        range_rate: how far a step moves a range at most, as a share of it.
        weight_rate: how far a step moves the code of a weight at most; 0 leaves the codes as they are.
        block_share: the weight of the error of blocks beside that of the outputs.
    """

    stage = Stage.CALIBRATED
    tolerance = ANY
    improves = True
    keeps_ranges = True
    budget: float = 3000.0
    max_steps: int = 240
    max_rounds: int = 12
    batch: int = 8
    bias_rate: float = 1e-3
    range_rate: float = 1e-4
    weight_rate: float = 0.0
    block_share: float = 0.3

    def __post_init__(self) -> None:
        check_numbers(self)

    def run(self, rw: Rewriter) -> None:
        """Train what can be trained, or say why nothing is."""
        reason = self._train(rw)
        if reason is not None:
            rw.skip(rw.nodes(lambda node: node.op == "output")[0], f"not distilled: {reason}")

    def _train(self, rw: Rewriter) -> str | None:
        writer = next(iter(rw.nodes(writes_in_place)), None)
        if writer is not None:
            return f"{writer.name!r} writes in place, through which no gradient is taken"
        student = self._student(rw)
        groups = self._groups(student)
        if not groups:
            return "there is nothing to train"
        blocks = _blocks(rw)
        distillation = Distillation(rw, Walk(rw.gm, student.stand_ins, blocks), blocks, self.block_share)
        batches = Minibatches(pooled(list(rw.data), distillation.float_outputs), self.batch)
        if batches.samples < _FEWEST_SAMPLES:
            return f"there are fewer than {_FEWEST_SAMPLES} samples"
        affordable = self.budget * 1e9 / max(_FORWARDS * batches.most * student.cost * batches.share, 1.0)
        if affordable < _FEWEST_STEPS:
            return f"the budget is enough for {int(affordable)} steps, fewer than {_FEWEST_STEPS}"
        steps = min(int(affordable), self.max_steps, batches.steps_of(self.max_rounds))
        with torch.enable_grad():
            reason = distillation.why_not(batches, groups)
            if reason is not None:
                return reason
            trained = distillation.train(batches, groups, steps, list(student.layers.values()))
        if not trained.gained:
            return f"after {steps} steps the error is no less"
        gain = f"{trained.after / trained.before:.2f} of the error after {steps} steps on {batches.samples} samples"
        self._write(rw, student, gain)
        return None

    def _student(self, rw: Rewriter) -> _Student:
        """Return stand-ins for the layers and ranges that can be trained."""
        usable, student = UsableLayers(rw), _Student()
        layers = []
        for node in rw.nodes(is_weighted):
            reason = _why_not(rw, usable, node)
            if reason is None:
                layers.append(node)
            else:
                rw.skip(node, f"not trained: {reason}")
        samples = sum(inputs.samples or 1 for inputs in rw.data)
        for node, values in rw.run_float(layers):
            layer = rw.module(node)
            deviation_c = _deviation(values, 1 - layer.weight.dim())
            has_codes = not layer.weight_quantizer.descriptor.is_float8
            student.layers[str(node.target)] = TrainedLayer(layer, deviation_c, self.weight_rate > 0 and has_codes)
            each = layer.weight.numel() / deviation_c.numel() + _OVERHEAD
            student.cost += each * sum(value.numel() for value in values) / samples
        for node in rw.nodes(is_quantizer):
            if not _is_fitted(rw.module(node)):
                continue
            if _ends_at_clip(rw, node):
                rw.skip(node, "range not trained: it ends where its tensor is clipped, at a value that must stay exact")
                continue
            student.ranges.setdefault(str(node.target), TrainedRange(rw.module(node)))
        return student

    def _groups(self, student: _Student) -> list[Group]:
        latents = [layer.latent for layer in student.layers.values() if layer.latent is not None]
        groups = [
            Group([layer.shift_c for layer in student.layers.values()], self.bias_rate),
            Group([one.log_factor for one in student.ranges.values()], self.range_rate),
            Group(latents, self.weight_rate),
        ]
        return [group for group in groups if group.parameters and group.rate > 0]

    def _write(self, rw: Rewriter, student: _Student, gain: str) -> None:
        for path, layer in student.layers.items():
            if layer.moved:
                rw.set_weight(path, layer.weight().detach(), f"{layer.moved} codes moved: {gain}", keep_range=True)
            if bool(layer.shift_c.any()):
                rw.set_bias(path, layer.bias().detach(), f"trained: {gain}")
        written = set[str]()
        for node in rw.nodes(is_quantizer):
            path = str(node.target)
            if path in student.ranges and path not in written:
                written.add(path)
                factor = student.ranges[path].factor
                if factor == 1:
                    continue
                low, high = rw.module(node).range
                rw.module(node).range = low.detach() * factor, high.detach() * factor
                rw.edit(node, f"range trained, now {factor:.4f} of what it was: {gain}")


def _why_not(rw: Rewriter, usable: UsableLayers, node: Node) -> str | None:
    layer = rw.module(node)
    if not isinstance(layer, WeightQuantized) or not layer.weight_quantizer.is_enabled:
        return "its weight is not quantized"
    if not layer.weight_quantizer.has_range:
        return "its weight has no range"
    if computed_tensors(layer):
        return "its weight or bias is computed in each call"
    if len(node.args) + len(node.kwargs) > 1:
        return "it is called with more than its input"
    return usable.why_not_norm(node)


def _is_fitted(quantizer: TensorQuantizer) -> bool:
    is_static = quantizer.calibrator is not None and quantizer.is_enabled and quantizer.has_range
    return is_static and quantizer.descriptor.axis is None and not bool(quantizer.is_zero.any())


def _ends_at_clip(rw: Rewriter, node: Node) -> bool:
    """Return whether the range begins at the lower bound, not 0, of a clip: what ``shift_activations`` leaves.

    Most values lie at the bound. Were it no code, all of them would be off by one error.
    """
    source = node.all_input_nodes[0]
    while kind(source) in _KEEPS_LOWEST and len(source.all_input_nodes) == 1:
        source = source.all_input_nodes[0]
    if source.op != "call_module" or kind(source) != "clip":
        return False
    lowest = getattr(rw.module(source), "min_val", 0.0)
    return lowest != 0 and math.isclose(float(rw.module(node).range[0]), lowest, rel_tol=1e-3)


def _blocks(rw: Rewriter) -> list[Node]:
    """Return where blocks end: the adds of two tensors of one shape, or all layers where there are none."""
    return rw.nodes(_is_residual_add) or rw.nodes(is_weighted)


def _is_residual_add(node: Node) -> bool:
    edges = tensor_edges(node) if kind(node) == "add" else []
    # A mask that is added to the scores of attention has another shape.
    return len(edges) == 2 and len({shape_of(edge.producer) for edge in edges} | {shape_of(node)}) == 1


def _deviation(values: list[Tensor], axis: int) -> Tensor:
    """Return the standard deviation of each channel over all batches: (channels,), float32."""
    by_channel = [value.float().movedim(axis, 0).flatten(1) for value in values]
    count = sum(one.shape[1] for one in by_channel)
    mean_c = torch.stack([one.double().sum(1) for one in by_channel]).sum(0) / count
    squares_c = torch.stack([(one - mean_c.float().unsqueeze(1)).square().double().sum(1) for one in by_channel])
    return (squares_c.sum(0) / count).sqrt().float()
