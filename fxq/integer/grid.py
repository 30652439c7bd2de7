"""What integers of a graph stand for: the codes of a tensor (Grid), and what sums are made of (Term)."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from fxq.quant.ops.quantize import dequantize, quantize

EIGHT_BITS = (torch.int8, torch.uint8)


@dataclass(frozen=True)
class Grid:
    """The codes that a tensor is written in: ``value = (code - zero_point) * scale``, with ``lo <= code <= hi``."""

    scale: float
    zero_point: int
    lo: int
    hi: int
    dtype: torch.dtype

    @property
    def bound(self) -> Tensor:
        """The largest magnitude of a code less the zero point; float64, ()."""
        return double(max(self.hi - self.zero_point, self.zero_point - self.lo))

    def quantized(self, values: Tensor) -> Tensor:
        """Return the codes of float values, as the lowered graph quantizes."""
        codes: Tensor = quantize(values, *self._params(), None, self.lo, self.hi, self.dtype)
        return codes

    @property
    def first(self) -> int:
        """The lowest code of the dtype, for 8 bits, or of the range."""
        return torch.iinfo(self.dtype).min if self.dtype in EIGHT_BITS else self.lo

    def values(self) -> Tensor:
        """Return, as float32, what each code stands for, ``first`` first; shape (256,) for 8 bits."""
        last = torch.iinfo(self.dtype).max if self.dtype in EIGHT_BITS else self.hi
        codes = torch.arange(self.first, last + 1, dtype=torch.int32)
        values: Tensor = dequantize(codes, *self._params(), None, torch.float32)
        return values

    def term(self, codes: Node) -> "Term":
        """Return what ``codes``, of this grid, add to a sum."""
        return Term(codes, self.zero_point, double(self.scale), self.bound)

    def clamped(self, low: float | None, high: float | None) -> "Grid":
        """Return the grid without the codes of values below ``low`` and above ``high``.

        Quantizing is monotonic, so that clamping codes is the same as quantizing what was clamped.
        """
        lo = self.lo if low is None else int(self.quantized(torch.tensor(float(low))))
        hi = self.hi if high is None else int(self.quantized(torch.tensor(float(high))))
        return dataclasses.replace(self, lo=lo, hi=hi)

    def _params(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.scale, dtype=torch.float32), torch.tensor(self.zero_point)


@dataclass(frozen=True)
class Term:
    """A tensor of integers, one of those that a value is the sum of: ``(integer - zero_point) * scale``.

    Args:
        node: computes the integers.
        zero_point: 0 for sums.
        scale: float64, () or (channels,) along ``axis``.
        bound: no integer less ``zero_point`` is larger in magnitude; float64, () or (channels,).
        axis: negative.
    """

    node: Node
    zero_point: int
    scale: Tensor
    bound: Tensor
    axis: int | None = None

    @property
    def largest(self) -> float:
        """No value is larger in magnitude."""
        return float((self.bound * self.scale.abs()).max())


def wide_grid(largest: float, bits: int) -> Grid:
    """Return the int32 codes, below 2^bits, of values up to ``largest``."""
    bound = 2**bits - 1
    # Grids are of float32 steps, which must not make the codes of the largest value too large.
    return Grid(
        float(torch.tensor((largest or 1.0) / bound, dtype=torch.float32)) * (1 + 2**-22), 0, -bound, bound, torch.int32
    )


def double(number: float) -> Tensor:
    """Return a number as a float64 tensor."""
    return torch.tensor(number, dtype=torch.float64)
