"""Is the data what the model was trained on? Its first batch norms know: they stored mean and variance in training.

Data of another scale (0..255 for 0..1, no normalization) quantizes well, since the float model errs alike. Measured on
a trained MobileNetV2: natural photos, one or sixteen of them, have 0.6 to 1.2 times the stored variance at the first
batch norm (median over the channels), the same photos scaled to -1..1 0.16 times, to 0..1 0.04, to 0..255 2600.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxq.module_tree import has_attribute, named_modules

_MOST_NORMS = 3  # behind the first ones, what the model learned evens differences out
_MOST_TIMES = 3.0  # larger or smaller, as a standard deviation
_LEAST_SAMPLES = 4  # to call data too small: one photo may show nothing but sky
_LEAST_VALUES = 16  # of a channel; fewer tell no variance
_LEAST_STEPS = 50  # of training, after which less than 1 % of the initial statistics is left (momentum 0.1)


@dataclass
class SeenStatistics:
    """What a batch norm was given.

    Args:
        path: of the batch norm.
        module: it.
        samples: how many it saw.
        count: how many values a channel had in them.
        sums_c, squares_c: of the values and their squares, by channel, in float64.
    """

    path: str
    module: nn.Module
    samples: int = 0
    count: int = 0
    sums_c: Tensor | None = None
    squares_c: Tensor | None = None

    def add(self, values: Any) -> None:
        """Add an input of shape (N, C, ...)."""
        if not isinstance(values, Tensor) or values.dim() < 2 or values.shape[1] != len(self._buffer("running_var")):
            return
        by_channel = values.detach().double().transpose(0, 1).flatten(1)
        self.samples += len(values)
        self.count += by_channel.shape[1]
        sums_c, squares_c = by_channel.sum(1), by_channel.square().sum(1)
        self.sums_c = sums_c if self.sums_c is None else self.sums_c + sums_c
        self.squares_c = squares_c if self.squares_c is None else self.squares_c + squares_c

    def unlike(self) -> str | None:
        """Return in words how the data differs from what was seen in training; None where it does not, or not much."""
        if self.sums_c is None or self.squares_c is None or self.count < _LEAST_VALUES:
            return None
        eps = getattr(self.module, "eps", 0.0)
        mean_c, trained_c = self.sums_c / self.count, self._buffer("running_var") + eps
        variance_c = self.squares_c / self.count - mean_c.square()
        if not variance_c.max() > 0:
            return None  # constant data: that is said elsewhere
        ratio = float(((variance_c.clamp_min(0) + eps) / trained_c).median())
        shift = float(((mean_c - self._buffer("running_mean")).square() / trained_c).median())
        is_small = self.samples >= _LEAST_SAMPLES and ratio * _MOST_TIMES**2 < 1
        if not is_small and ratio + shift <= _MOST_TIMES**2:
            return None
        return (
            f"what reaches the batch norm {self.path!r} has {ratio**0.5:.2g} times the standard deviation that it "
            f"stored in training, and a mean that lies {shift**0.5:.2g} of those away (medians over "
            f"{len(trained_c)} channels)"
        )

    def _buffer(self, name: str) -> Tensor:
        buffer: Tensor = getattr(self.module, name)
        return buffer.detach().double()


@contextlib.contextmanager
def watched_norms(model: nn.Module) -> Iterator[list[SeenStatistics]]:
    """Yield a list that gets the first batch norms that ``model`` reaches while it runs in here, in that order.

    Those are left out that learned nothing, or have seen too few batches.
    """
    seen: dict[str, SeenStatistics | None] = {}  # None: it has learned nothing
    found: list[SeenStatistics] = []

    def watch(path: str, module: nn.Module) -> Any:
        def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            statistics = seen.get(path)
            if path not in seen and len(found) < _MOST_NORMS:
                statistics = seen[path] = SeenStatistics(path, module) if _has_learned(module) else None
                found.extend([] if statistics is None else [statistics])
            if statistics is not None:
                statistics.add(inputs[0] if inputs else None)

        return module.register_forward_pre_hook(note)

    handles = [watch(path, module) for path, module in named_modules(model) if _may_have_learned(module)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _may_have_learned(module: nn.Module) -> bool:
    """Return whether a module is a batch norm, torch's or another's; its statistics are only looked at if it runs."""
    return has_attribute(module, "running_mean") and not isinstance(module, torch.jit.ScriptModule)


def _has_learned(module: nn.Module) -> bool:
    """Return whether a batch norm has statistics from training."""
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    steps = getattr(module, "num_batches_tracked", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return False
    if isinstance(steps, Tensor) and 0 < int(steps) < _LEAST_STEPS:  # 0 in files that never stored it
        return False
    return not (bool((mean == 0).all()) and bool((variance == 1).all()))
