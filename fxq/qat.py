"""Quantization-aware training: what is frozen while it runs, and how fast it learns.

The recipe (of pytorch-quantization's guide): about a tenth of the steps of the original training, from 1 % of its
initial learning rate down half a cosine to 0.01 %. Batch norm statistics and ranges are frozen towards the end
(Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.3), so that weights settle on what is deployed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import GraphModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fxq.errors import InputError
from fxq.nn import BATCH_NORMS, TensorQuantizer
from fxq.nn.batchnorm import set_frozen
from fxq.stage import Stage
from fxq.state import find_state, require_state


def freeze_batchnorm(prepared: nn.Module, frozen: bool = True) -> None:
    """Let batch norms normalize by their running statistics in training too, and leave these as they are.

    From then on training computes what is deployed. gamma and beta go on learning. ``train()`` does not undo it.

    Args:
        prepared: the result of ``fxq.prepare(qat=True)``, or what holds it (DistributedDataParallel, AveragedModel).
        frozen: False lets the statistics follow the batches again.

    Raises:
        StageError: there is no prepared model.
    """
    for gm in _prepared_in(prepared, "freeze_batchnorm"):
        for module in gm.modules():
            if isinstance(module, BATCH_NORMS):
                set_frozen(module, frozen, training=gm.training)


def freeze_ranges(prepared: nn.Module, frozen: bool = True) -> None:
    """Keep the range of every quantizer as it is: of weights, learned ones, and moving averages.

    Learned ranges no longer require gradients: wrap the model in DistributedDataParallel after this, or with
    ``find_unused_parameters=True``.

    Args:
        prepared: as in ``freeze_batchnorm``.
        frozen: False lets them follow, or learn, again.

    Raises:
        StageError: there is no prepared model.
    """
    for gm in _prepared_in(prepared, "freeze_ranges"):
        for module in gm.modules():
            if isinstance(module, TensorQuantizer):
                module.freeze(frozen)


def qat_schedule(optimizer: Optimizer, total_steps: int, first: float = 0.01, last: float = 0.0001) -> LambdaLR:
    """Return a schedule of learning rates for quantization-aware training: half a cosine from 1 % to 0.01 %.

    Args:
        optimizer: with the initial learning rates of the original, float training, which are changed here.
        total_steps: how often ``step()`` will be called: about a tenth of the steps of the original training.
        first, last: shares of those rates.

    Raises:
        InputError: no steps, or shares that do not fall from at most 1 to 0.
    """
    if not isinstance(total_steps, int) or isinstance(total_steps, bool) or total_steps < 1:
        raise InputError(f"total_steps must be a positive integer, got {total_steps!r}")
    if not 0 <= last <= first <= 1:
        raise InputError(f"first and last are shares of the rate with 0 <= last <= first <= 1, got {first} and {last}")
    return LambdaLR(optimizer, _HalfCosine(total_steps, first, last))


@dataclass
class _HalfCosine:
    """Factor of the learning rate by step; a class, so that the scheduler's state dict holds it."""

    total_steps: int
    first: float
    last: float

    def __call__(self, step: int) -> float:
        share = min(step / self.total_steps, 1.0)
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * share)) / 2


def _prepared_in(model: nn.Module, call: str) -> Iterator[GraphModule]:
    found: list[Any] = [
        module for module in model.modules() if isinstance(module, GraphModule) and find_state(module) is not None
    ]
    for gm in found or [model]:
        require_state(gm, Stage.PREPARED, call)
        yield gm
