"""How far two outputs are apart, in LSB, and how far they may be: the one rule of ``convert`` and of export's check.

One LSB of an output is the step of its own quantizer where it comes from one, else max|output| / hi, hi being 127 for
8 bits and 7 where the model has 4-bit activations: what one step of a tensor of that range is worth, so the figure
depends neither on the model's units nor on its bits.

Tolerance. Two correct computations do not agree on every bit: they add up a convolution in another order, a value that
lies between two codes falls to one side here and to the other there, and each such flip moves what follows by a
fraction of a code. Flips are rare and have no preferred sign, so the mean stays below one LSB; a single value may
collect several. A range that is measured at run time adds nothing: its step moves with the last bits of the extremes,
and that, too, shows only in values that lie between two codes. A wrong scale, axis, zero point or weight is off by many
LSB everywhere. Hence: mean at most 1 LSB, and at most 16 LSB for any value; a file as it is written, which no runtime
has fused yet, has at most 1 LSB at 99.99 % of its values. Deep models amplify flips; for them the bounds are three
times what rounding alone does to the model (rounding_noise.py), which is measured only when the first ones fail. A
runtime's fused integer kernels are held to the first two: they round the same tensors to the same codes, and what they
round beside these, biases to int32 and what MatMulNBits reads, is in the noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxq.compare.outputs import Named, copies, largest_finite, running_alike
from fxq.compare.rounding_noise import REORDERED, Noise, run_with_rounding_noise

MAX_MEAN_LSB = 1.0
MAX_LSB = 16.0
MAX_BEYOND = 1e-4  # of the values, by more than one LSB
FEW = 3  # values that may be: of a short output one is a large share, and which codes flip is chance
NOISE_FACTOR = 3.0
# Which codes flip is chance, and with few inputs one draw may hit none that matter: the worst of several counts.
NOISE_DRAWS = 5


@dataclass(frozen=True)
class OutputParity:
    """How far two computations of one output are apart; an LSB is one ``step``.

    ``off``: how many of the ``values`` are further apart than one.
    """

    name: str
    step: float
    max_lsb: float
    mean_lsb: float
    max_abs: float
    off: int = 0
    values: int = 0

    @property
    def beyond(self) -> float:
        """The share of values that are further apart than one LSB."""
        return self.off / self.values if self.values else 0.0

    def worse(self, other: "OutputParity") -> "OutputParity":
        """Return the larger of each figure of two draws of one output."""
        return OutputParity(
            self.name, self.step, max(self.max_lsb, other.max_lsb), max(self.mean_lsb, other.mean_lsb),
            max(self.max_abs, other.max_abs), max(self.off, other.off), self.values,
        )  # fmt: skip

    def is_within(self, lsb: float = 1.0, noise: "OutputParity | None" = None) -> bool:
        """Return whether the error is at most ``lsb`` on average, and not more than rounding does if that is known."""
        mean, largest = (noise.mean_lsb, noise.max_lsb) if noise else (0.0, 0.0)
        return self.mean_lsb <= max(lsb * MAX_MEAN_LSB, NOISE_FACTOR * mean) and self.max_lsb <= max(
            lsb * MAX_LSB, NOISE_FACTOR * largest
        )

    def is_rarely_beyond(self, noise: "OutputParity | None" = None) -> bool:
        """Return whether few values are off by more than one LSB, or no more than rounding moves if that is known."""
        share = max(MAX_BEYOND, NOISE_FACTOR * noise.beyond if noise else 0.0)
        return self.off <= max(share * self.values, FEW)


Floors = tuple[OutputParity, ...]


def compare(name: str, want: Tensor, have: Tensor, step: float) -> OutputParity:
    """Compare two tensors of one shape; infinities and NaN are equal to themselves, infinitely far from others."""
    if not want.numel():
        return OutputParity(name, step, 0.0, 0.0, 0.0)
    first, second = want.detach().cpu().double(), have.detach().cpu().double()
    same = (first == second) | (first.isnan() & second.isnan())
    error = torch.nan_to_num((first - second).abs(), nan=torch.inf, posinf=torch.inf).masked_fill(same, 0.0)
    largest, mean = float(error.max()), float(error.mean())
    return OutputParity(name, step, largest / step, mean / step, largest, int((error > step).sum()), want.numel())


def compare_all(expected: Named, actual: Sequence[Tensor], steps: Sequence[float]) -> tuple[OutputParity, ...]:
    """Compare tensors pairwise; each has the shape of its partner."""
    return tuple(
        compare(name, want, have, step) for (name, want), have, step in zip(expected, actual, steps, strict=True)
    )


def is_rounding(error: float, want: Tensor) -> bool:
    """Return whether ``error``, the largest of one output, is what another order of summation explains.

    Folding reorders sums, and rounds a half-precision weight again; what is not merely that is off by far more.
    """
    if not want.dtype.is_floating_point:
        return error == 0
    return error <= max(1e-4, 16 * torch.finfo(want.dtype).eps) * max(largest_finite(want), 1e-6)


def rounding_floors(
    gm: fx.GraphModule,
    inputs: tuple[Any, ...],
    expected: Named,
    steps: Sequence[float],
    is_enough: Callable[[Floors], bool],
    noise: Noise = REORDERED,
) -> Floors:
    """Return what rounding alone does to each output of ``gm``, which makes ``expected`` of ``inputs``.

    It is drawn several times, until ``is_enough`` says that what was found explains the error in question.
    """
    worst: Floors = ()
    for seed in range(NOISE_DRAWS):
        with running_alike(gm):
            noisy = run_with_rounding_noise(gm, copies(inputs), seed, noise)
        drawn = compare_all(expected, [output for _, output in noisy], steps)
        pairs = zip(worst or drawn, drawn, strict=True)
        worst = tuple(one.worse(other) for one, other in pairs)
        if is_enough(worst):
            break
    return worst
