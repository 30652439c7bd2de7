"""How far tensors are apart, from sums over any number of batches: SQNR, cosine and mean squared error.

With x what the float model computes and y what the quantized one does, SQNR = 10 log10(sum x^2 / sum (x - y)^2) in dB,
cosine = sum x y / sqrt(sum x^2 sum y^2), and MSE = mean (x - y)^2 in the tensor's own unit, squared.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Figures:
    """How far a tensor is from what it should be.

    Args:
        sqnr_db: infinite where they are equal; None where the float tensor is zero throughout.
        cosine: 1 where both point the same way; None where one is zero.
        mse: in the square of the tensor's unit.
    """

    sqnr_db: float | None
    cosine: float | None
    mse: float


class Sums:
    """Running sums, in float64, of pairs of tensors."""

    def __init__(self) -> None:
        self._float = self._quantized = self._product = self._noise = 0.0
        self._count = 0
        self.nan = 0  # values that are NaN in float, and do not count

    def add(self, expected: Any, found: Any) -> None:
        """Add the floating-point tensors of two equal structures; what is not finite in float does not count."""
        pairs = zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True)
        for want, have in pairs:
            if isinstance(want, Tensor) and want.is_floating_point():
                self._add(want.detach(), have.detach().to(want.device))

    @property
    def figures(self) -> Figures | None:
        """What the sums say; None where nothing was added."""
        if not self._count:
            return None
        norms = self._float * self._quantized
        cosine = self._product / math.sqrt(norms) if norms > 0 else None
        return Figures(_decibel(self._float, self._noise), cosine, self._noise / self._count)

    def _add(self, want: Tensor, have: Tensor) -> None:
        finite = torch.isfinite(want)
        first, second = (torch.where(finite, value, 0.0).double() for value in (want, have))
        self._float += float(first.square().sum())
        self._quantized += float(second.square().sum())
        self._product += float((first * second).sum())
        self._noise += float((first - second).square().sum())
        self._count += int(finite.sum())
        self.nan += int(want.isnan().sum())


def _decibel(signal: float, noise: float) -> float | None:
    if not signal:
        return None
    if not math.isfinite(noise):  # what is not finite in the quantized model alone is all wrong
        return -math.inf
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)
