"""Rounding a weight for its inputs: minimise ``tr(D H D')`` with ``D = Wq - W`` and H the covariance of the inputs.

GPTQ: columns are rounded one after the other, those of the largest variance first, and what each does to the outputs
is made up for by the columns that are still free: with ``H^-1 = U' U``, column i spreads ``(w_i - q_i) / U_ii * U_ij``
over the columns j behind it. Then single codes are moved by one step where that lowers the error further.

Source: Frantar et al. 2022, arXiv:2210.17323. The moves are coordinate descent on the same objective.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_DAMPING = 0.01  # of the mean variance: inputs that the samples do not tell apart stay apart
_BLOCK = 128  # columns whose effect on those behind them is applied at once
_MOVES = 50  # of single codes, for each row


@dataclass(frozen=True)
class Grid:
    """The values that each weight may take: ``(q - zero_point) * scale`` for codes q of [lo, hi].

    Args:
        scale, zero_point: broadcast against (groups, outputs, inputs).
        lo, hi: the lowest and the highest code.
    """

    scale: Tensor
    zero_point: Tensor
    lo: int
    hi: int

    def codes(self, weight: Tensor) -> Tensor:
        """Return the nearest codes, as floats."""
        return (torch.round(weight / self.scale) + self.zero_point).clamp(self.lo, self.hi)

    def values(self, codes: Tensor) -> Tensor:
        """Return what codes stand for."""
        return (codes - self.zero_point) * self.scale

    def columns(self, index: Tensor | slice) -> "Grid":
        """Return the grid of some columns."""
        return Grid(self.scale[..., index], self.zero_point[..., index], self.lo, self.hi)


def round_for_inputs(weight: Tensor, covariance: Tensor, grid: Grid) -> Tensor | None:
    """Return ``weight`` on its grid, rounded for inputs of this covariance; None where that has no inverse.

    Args:
        weight: (groups, outputs, inputs).
        covariance: (groups, inputs, inputs).
        grid: scale and zero point of the shape of ``weight``.
    """
    damped = covariance + _DAMPING * _mean_variance(covariance) * torch.eye(covariance.shape[-1], device=weight.device)
    order = damped.diagonal(dim1=1, dim2=2).mean(0).argsort(descending=True)
    back = order.argsort()
    sorted_grid = grid.columns(order)
    rounded = _sweep(weight[..., order], damped[:, order][:, :, order], sorted_grid)
    return None if rounded is None else _move_codes(weight, rounded[..., back], damped, grid)


def error(weight: Tensor, rounded: Tensor, covariance: Tensor) -> Tensor:
    """Return the squared error of the outputs that rounding causes, for each group and output: (groups, outputs)."""
    difference = rounded - weight
    return ((difference @ covariance) * difference).sum(-1)


def _mean_variance(covariance: Tensor) -> Tensor:
    """Return that of the inputs of each group, (groups, 1, 1); 1 where none varies, which rounds to nearest."""
    variance = covariance.diagonal(dim1=1, dim2=2).mean(1)
    return torch.where(variance > 0, variance, 1).reshape(-1, 1, 1)


def _sweep(weight: Tensor, covariance: Tensor, grid: Grid) -> Tensor | None:
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed.any()):
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if bool(failed.any()):
        return None
    free, rounded = weight.clone(), torch.empty_like(weight)
    inputs = weight.shape[-1]
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        errors = torch.empty_like(free[..., start:stop])
        for column in range(start, stop):
            at = slice(column, column + 1)
            cell = grid.columns(at)
            rounded[..., at] = cell.values(cell.codes(free[..., at]))
            spread = (free[..., at] - rounded[..., at]) / upper[:, at, at]
            free[..., at.stop : stop] -= spread * upper[:, at, at.stop : stop]
            errors[..., column - start : column - start + 1] = spread
        free[..., stop:] -= errors @ upper[:, start:stop, stop:]
    return rounded


def _move_codes(weight: Tensor, rounded: Tensor, covariance: Tensor, grid: Grid) -> Tensor:
    codes = torch.round(rounded / grid.scale) + grid.zero_point
    step = grid.scale.expand_as(weight)
    variance = covariance.diagonal(dim1=1, dim2=2).unsqueeze(1)
    gradient = (rounded - weight) @ covariance  # of half the error, by the weights
    for _ in range(_MOVES):
        direction = -torch.sign(gradient)
        moved = codes + direction
        gain = 2 * step * gradient.abs() - step.square() * variance
        gain = gain.masked_fill((moved < grid.lo) | (moved > grid.hi), 0)
        most, column = gain.max(-1, keepdim=True)  # of each row
        change = torch.where(most > 0, direction.gather(-1, column), 0)
        if not bool(change.any()):
            break
        codes.scatter_add_(-1, column, change)
        rows = torch.take_along_dim(covariance, column.expand(-1, -1, covariance.shape[-1]), 1)
        gradient += change * step.gather(-1, column) * rows
    return grid.values(codes)
