"""Training a quantized model to say what the float model says; see ``distill`` for what is trained, and why so little.

The error is that of the outputs over their power, plus a share of the mean of the same for the outputs of blocks. The
float model runs on each batch anew: nothing is kept but the batch, so the memory is that of one step. Some samples are
kept back: training ends with what was best on them, and with nothing where that is no better than the start.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from fxq import Rewriter
from fxq_passes.accuracy.minibatches import Minibatches
from fxq_passes.accuracy.student import Walk

_WARM_UP, _LOOKS = 0.1, 10  # a share of the steps; how often the samples kept back are looked at
_ENOUGH = 0.98  # of the error at the start: less is no gain that a few samples can tell


@dataclass(frozen=True)
class Group:
    """Parameters with one learning rate."""

    parameters: list[nn.Parameter]
    rate: float


@dataclass(frozen=True)
class Goal:
    """What the float model makes of a batch: its floating-point outputs, and those of the blocks."""

    outputs: list[Tensor]
    blocks: dict[Node, Tensor]


@dataclass(frozen=True)
class Trained:
    """Relative errors on the samples kept back, before and after; ``steps`` is where it was best, 0 at the start."""

    before: float
    after: float
    steps: int


class Distillation:
    """The float model as teacher, the quantized one as student.

    Args:
        rw: of the pass.
        student: the quantized model, with stand-ins for what is trained.
        blocks: the nodes at which blocks end; ``student`` notes them.
        block_share: the weight of the blocks beside the outputs.
    """

    def __init__(self, rw: Rewriter, student: Walk, blocks: Sequence[Node], block_share: float) -> None:
        self._rw, self._student, self._share = rw, student, block_share
        self._teacher = Walk(rw.gm, {}, blocks)

    def float_outputs(self, inputs: Any) -> list[Tensor]:
        """Return the floating-point tensors that the float model returns."""
        return self.goal(inputs).outputs

    def goal(self, inputs: Any) -> Goal:
        """Return what the float model makes of ``inputs``."""
        with self._rw.in_float(), torch.no_grad():
            outputs = _floating(self._teacher.outputs(inputs))
        return Goal(outputs, self._teacher.values)

    def errors(self, inputs: Any, goal: Goal) -> tuple[Tensor, Tensor]:
        """Return the mean relative error of the outputs, and that of the outputs and blocks as it is trained."""
        found = _floating(self._student.outputs(inputs))
        of_outputs = _mean([_relative(got, want) for got, want in zip(found, goal.outputs, strict=True)])
        of_blocks = _mean([_relative(self._student.values[node], want) for node, want in goal.blocks.items()])
        return of_outputs, of_outputs + self._share * of_blocks

    def why_not(self, batches: Minibatches, groups: Sequence[Group]) -> str | None:
        """Return why the parameters cannot be trained, None where a first batch says that they can."""
        inputs = batches.kept_back()[0]
        _, error = self.errors(inputs, self.goal(inputs))
        if not bool(torch.isfinite(error)):
            return "the outputs of the float model hold NaN or infinity"
        try:
            torch.autograd.backward(error, inputs=_parameters(groups))
        except (RuntimeError, NotImplementedError) as failure:  # an operation without a derivative, integer outputs
            return f"no gradient reaches what would be trained: {failure}"
        return None

    def train(self, batches: Minibatches, groups: Sequence[Group], steps: int, bounded: Sequence[Any]) -> Trained:
        """Train the parameters, and leave them at their best.

        Args:
            batches: to learn from; those kept back decide what is best.
            groups: the parameters.
            steps: how many.
            bounded: stand-ins that keep their parameters in bounds after each step.
        """
        parameters = _parameters(groups)
        options = [{"params": group.parameters, "lr": 0.0, "rate": group.rate} for group in groups]
        optimizer = torch.optim.Adam(options, betas=(0.9, 0.99))
        judging = [(inputs, self.goal(inputs)) for inputs in batches.kept_back()]
        start = self._judged(judging)
        best, best_step, kept = (start[0], start[1] * _ENOUGH), 0, _copied(parameters)
        for step, drawn in zip(range(1, steps + 1), batches.steps(), strict=False):
            for options_of in optimizer.param_groups:
                options_of["lr"] = options_of["rate"] * _schedule(step - 1, steps)
            optimizer.zero_grad()
            for inputs in drawn:
                _, error = self.errors(inputs, self.goal(inputs))
                torch.autograd.backward(error / len(drawn), inputs=parameters)
            optimizer.step()
            for one in bounded:
                one.keep_in_bounds()
            if step % max(steps // _LOOKS, 1) == 0:
                now = self._judged(judging)
                if now[0] <= start[0] and now[1] < best[1]:
                    best, best_step, kept = now, step, _copied(parameters)
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
        return Trained(start[0], best[0], best_step)

    @torch.no_grad()
    def _judged(self, judging: Sequence[tuple[Any, Goal]]) -> tuple[float, float]:
        """Return the errors on the samples kept back: of the outputs, and as it is trained."""
        found = torch.stack([torch.stack(self.errors(inputs, goal)) for inputs, goal in judging])
        of_outputs, all_of_it = found.double().mean(0).tolist()
        return of_outputs, all_of_it


def _schedule(step: int, steps: int) -> float:
    """Return the share of the learning rates: a linear warm-up, then a cosine to 0."""
    return min((step + 1) / (_WARM_UP * steps), 1.0) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared error over the power, in float32."""
    power = wanted.float().square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    return (found.float() - wanted.float()).square().sum() / power


def _mean(errors: list[Tensor]) -> Tensor:
    return torch.stack(errors).mean() if errors else torch.zeros(())


def _floating(outputs: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _parameters(groups: Sequence[Group]) -> list[nn.Parameter]:
    return [parameter for group in groups for parameter in group.parameters]


def _copied(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]
