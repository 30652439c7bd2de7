"""Training a quantized model to say what the float model says; see ``distill`` for what is trained, and why so little.

The error is that of the outputs over their power, plus a share of the mean of the same for the outputs of blocks. The
float model runs on each batch anew: nothing is kept but the batch, so the memory is that of one step. All samples are
trained on: what was fitted before saw them too, and errs less on any of them than on others, so that those kept back
would stop the training too soon. Whether samples that no pass saw gain, the pipeline measures.
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

_WARM_UP = 0.1  # a share of the steps
_ENOUGH = 0.98  # of the error at the start: less is no gain


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
    """Errors as they are trained, before and after, on all samples."""

    before: float
    after: float

    @property
    def gained(self) -> bool:
        """Is the error less for it?"""
        return self.after < _ENOUGH * self.before


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

    def error(self, inputs: Any, goal: Goal) -> Tensor:
        """Return the mean relative error of the outputs, and a share of that of the blocks."""
        found = _floating(self._student.outputs(inputs))
        of_outputs = _mean([_relative(got, want) for got, want in zip(found, goal.outputs, strict=True)])
        of_blocks = _mean([_relative(self._student.values[node], want) for node, want in goal.blocks.items()])
        return of_outputs + self._share * of_blocks

    def why_not(self, batches: Minibatches, groups: Sequence[Group]) -> str | None:
        """Return why the parameters cannot be trained, None where a first batch says that they can."""
        inputs = next(batches.whole())
        error = self.error(inputs, self.goal(inputs))
        if not bool(torch.isfinite(error)):
            return "the outputs of the float model hold NaN or infinity"
        try:
            torch.autograd.backward(error, inputs=_parameters(groups))
        except (RuntimeError, NotImplementedError) as failure:  # an operation without a derivative, integer outputs
            return f"no gradient reaches what would be trained: {failure}"
        return None

    def train(self, batches: Minibatches, groups: Sequence[Group], steps: int, bounded: Sequence[Any]) -> Trained:
        """Train the parameters.

        Args:
            batches: to learn from.
            groups: the parameters.
            steps: how many.
            bounded: stand-ins that keep their parameters in bounds after each step.
        """
        parameters = _parameters(groups)
        options = [{"params": group.parameters, "lr": 0.0, "rate": group.rate} for group in groups]
        optimizer = torch.optim.Adam(options, betas=(0.9, 0.99))
        before = self._error_of_all(batches)
        for step, drawn in zip(range(1, steps + 1), batches.steps(), strict=False):
            for options_of in optimizer.param_groups:
                options_of["lr"] = options_of["rate"] * _schedule(step - 1, steps)
            optimizer.zero_grad()
            for inputs in drawn:
                error = self.error(inputs, self.goal(inputs))
                torch.autograd.backward(error / len(drawn), inputs=parameters)
            optimizer.step()
            for one in bounded:
                one.keep_in_bounds()
        return Trained(before, self._error_of_all(batches))

    @torch.no_grad()
    def _error_of_all(self, batches: Minibatches) -> float:
        """Return the mean error of the batches of all samples."""
        errors = [self.error(inputs, self.goal(inputs)) for inputs in batches.whole()]
        return float(torch.stack(errors).double().mean())


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
