"""How good a quantized model is: its outputs against those of the float model, on samples.

SQNR is 10 log10(sum float^2 / sum (float - quantized)^2), in dB: 20 dB is an error of a tenth of the signal, 0 dB one
as large as the signal. Agreement is the share of places where both choose the same class, or the same integer.

The scale is for readers. Trained classifiers lose nothing worth a word above 20 dB; compact ones (MobileNets,
EfficientNets) with plain ranges lie near 10 dB and lose a few percent; below 5 dB a model is of no use, or its
calibration data, a pass or fxq went wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxq.compare.outputs import Named

GOOD_DB = 20.0
FAIR_DB = 10.0
LEAST_DB = 5.0  # what recipes ask for if nothing else is said


@dataclass(frozen=True)
class OutputQuality:
    """One output.

    Args:
        name: as in an exported file.
        sqnr_db: over all samples; None where the output is no floating-point tensor, or zero throughout.
        agreement: share of equal choices along the class dimension (the last of three dimensions, else dimension 1),
            or of equal integers; None where there is nothing to choose between.
    """

    name: str
    sqnr_db: float | None
    agreement: float | None

    def __str__(self) -> str:
        return ", ".join(_figures(self.sqnr_db, self.agreement)) or "nothing to compare"


@dataclass(frozen=True)
class Quality:
    """All outputs.

    Args:
        outputs: in the order in which the model returns them.
        samples: how many were compared.
        against: what with, such as "the original model".
    """

    outputs: tuple[OutputQuality, ...]
    samples: int
    against: str

    @property
    def sqnr_db(self) -> float | None:
        """That of the worst output; None where none has one."""
        return min((output.sqnr_db for output in self.outputs if output.sqnr_db is not None), default=None)

    @property
    def agreement(self) -> float | None:
        """That of the worst output; None where none has one."""
        return min((output.agreement for output in self.outputs if output.agreement is not None), default=None)

    @property
    def verdict(self) -> str:
        """ "good", "fair" (usual for compact models), "suspicious", "broken", or "unknown"."""
        return verdict(self.sqnr_db)

    def __str__(self) -> str:
        figures = _figures(self.sqnr_db, self.agreement)
        count = f"{self.samples} sample{'' if self.samples == 1 else 's'}"
        return f"{', '.join(figures) or 'nothing to compare'}, against {self.against} on {count}"


def verdict(sqnr_db: float | None) -> str:
    """Return what a reader is to think of it: see the scale above."""
    if sqnr_db is None:
        return "unknown"
    scale = ((GOOD_DB, "good"), (FAIR_DB, "fair"), (LEAST_DB, "suspicious"))
    return next((word for least, word in scale if sqnr_db >= least), "broken")


def measure(expected: Sequence[Named], found: Sequence[Named], samples: int, against: str) -> Quality:
    """Compare what two models return, batch by batch.

    Args:
        expected, found: the named outputs of each batch, alike in names and shapes.
        samples: how many they are.
        against: what made ``expected``.
    """
    by_name: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for wanted, given in zip(expected, found, strict=True):
        for (name, want), (_, have) in zip(wanted, given, strict=True):
            by_name.setdefault(name, []).append((want.detach(), have.detach().to(want.device)))
    outputs = tuple(OutputQuality(name, _sqnr_db(pairs), _agreement(pairs)) for name, pairs in by_name.items())
    return Quality(outputs, samples, against)


def sqnr_db(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float | None:
    """Return 10 log10(sum expected^2 / sum (expected - found)^2) over tensors of equal shapes; None without signal."""
    return _sqnr_db([(want, have) for want, have in zip(expected, found, strict=True)])


def _sqnr_db(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Infinities and NaN of the reference do not count; where only the other is not finite, nothing is right."""
    signal = noise = 0.0
    for want, have in pairs:
        if not (want.is_floating_point() or want.is_complex()):
            continue
        first, second = want.to(torch.complex128 if want.is_complex() else torch.float64), have
        finite = torch.isfinite(first)
        error = torch.where(finite, first - second, 0.0).abs()
        signal += float(torch.where(finite, first, 0.0).abs().square().sum())
        noise += float(error.square().sum())
    if not signal:
        return None
    if math.isnan(noise):
        return -math.inf
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if math.isfinite(noise) else -math.inf


def _agreement(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    equal = total = 0
    for want, have in pairs:
        if want.is_complex():
            continue
        first, second = want, have
        if want.is_floating_point():
            axis = -1 if want.dim() == 3 else 1
            if want.dim() < 2 or want.shape[axis] < 2:
                continue
            first, second = want.argmax(axis), have.argmax(axis)
        equal += int((first == second).sum())
        total += first.numel()
    return equal / total if total else None


def _figures(sqnr: float | None, agreement: float | None) -> list[str]:
    found = [] if sqnr is None else [f"{sqnr:.1f} dB ({verdict(sqnr)})"]
    return found if agreement is None else [*found, f"{100 * agreement:.1f} % agree"]
