"""How good a quantized model is: its outputs against those of the float model, on samples.

SQNR is 10 log10(sum float^2 / sum (float - quantized)^2), in dB: 20 dB is an error of a tenth of the signal, 0 dB one
as large as the signal. Agreement is the share of places where both choose the same class, or the same integer.

Over all samples together the loudest part decides: one loud sample, a constant that is added to all, the fill value of
a mask, the channels in the largest unit. So it is also taken of each sample by itself, around the median and without
fill values, and of each channel; the verdict follows the worst of these. Of a sigmoid or softmax errors of less than
1/256 do not count there, for its values mean something by themselves: boxes that all lie within 0.5 +- 0.001, as of a
detector before training, and classes that no sample has, are not lost where 8 bits round them.

The scale is for readers. Trained classifiers lose nothing worth a word above 20 dB; compact ones (MobileNets,
EfficientNets) with plain ranges lie near 10 dB and lose a few percent; below 5 dB a model is of no use, or its
calibration data, a pass or fxq went wrong.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxq.compare.outputs import Named

GOOD_DB = 20.0
FAIR_DB = 10.0
LEAST_DB = 5.0  # what recipes ask for if nothing else is said
# Of outputs without dB: integers, and what compares or chooses.
_GOOD_SHARE, _FAIR_SHARE, LEAST_SHARE = 0.95, 0.8, 0.5
_LOST_DB, _MOST_LOST = 1.0, 0.3  # a channel of which nothing is left, and how many of them a usable output may have
# Fewer calibration samples than this say little about others: a range that holds them is easily found.
_FEW = 8
_SHARE_STEP = 1 / 256  # what 8 bits tell apart between 0 and 1
_FILL = 1e4  # a value this large that occurs again and again is put there by a mask


@dataclass(frozen=True)
class OutputQuality:
    """One output.

    Args:
        name: as in an exported file.
        sqnr_db: over all samples; None where the output is no floating-point tensor, or zero throughout.
        agreement: share of equal choices along the class dimension (the last of three dimensions, else dimension 1),
            or of equal integers; None where there is nothing to choose between.
        typical_db: the median over samples of what they are around the median, without the fill values of masks.
        lost: share of channels of which nothing is left; None where there is one only.
    """

    name: str
    sqnr_db: float | None
    agreement: float | None
    typical_db: float | None = None
    lost: float | None = None

    @property
    def judged_db(self) -> float | None:
        """The lower of both; -inf where too many channels are lost."""
        if self.lost is not None and self.lost > _MOST_LOST:
            return -math.inf
        return min((value for value in (self.sqnr_db, self.typical_db) if value is not None), default=None)

    @property
    def verdict(self) -> str:
        """As of :class:`Quality`."""
        if self.judged_db is not None:
            return verdict(self.judged_db)
        scale = ((_GOOD_SHARE, "good"), (_FAIR_SHARE, "fair"), (LEAST_SHARE, "suspicious"), (-math.inf, "broken"))
        share = self.agreement
        return "unknown" if share is None else next(word for least, word in scale if share >= least)

    def is_below(self, least_db: float) -> bool:
        """Return whether the output is worse than what is asked for."""
        if self.judged_db is not None:
            return self.judged_db < least_db
        return self.agreement is not None and self.agreement < LEAST_SHARE and least_db > 0

    def __str__(self) -> str:
        found = [] if self.sqnr_db is None else [f"{self.sqnr_db:.1f} dB"]
        if self.sqnr_db is not None and self.typical_db is not None and self.typical_db < self.sqnr_db - 3:
            found.append(f"{self.typical_db:.1f} dB in a typical sample around the median")
        if self.lost is not None and self.lost > _MOST_LOST:
            found.append(f"nothing left of {100 * self.lost:.0f} % of the channels")
        if self.agreement is not None:
            found.append(f"{100 * self.agreement:.0f} % agree")
        return f"{', '.join(found) or 'nothing to compare'} ({self.verdict})"


@dataclass(frozen=True)
class Quality:
    """All outputs.

    Args:
        outputs: in the order in which the model returns them.
        samples: how many were compared.
        against: what with, such as "the original model".
        were_learned: the model was calibrated on these very samples.
    """

    outputs: tuple[OutputQuality, ...]
    samples: int
    against: str
    were_learned: bool = False

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
        """That of the worst output: "good", "fair" (usual for compact models), "suspicious", "broken" or "unknown"."""
        return "unknown" if self.worst is None else self.worst.verdict

    @property
    def worst(self) -> OutputQuality | None:
        """The output with the worst verdict, and among those the lowest figure."""
        return min(self.outputs, key=_badness, default=None)

    @property
    def evidence(self) -> str:
        """What the figures rest on, and whether that is little."""
        count = f"{self.samples} sample{'' if self.samples == 1 else 's'}"
        is_weak = self.were_learned and self.samples < _FEW
        weak = " of the calibration data itself, which says little about other data" if is_weak else ""
        return f"against {self.against} on {count}{weak}"

    def __str__(self) -> str:
        where = f"{self.worst.name}: " if self.worst is not None and len(self.outputs) > 1 else ""
        return f"{where}{self.worst or 'nothing to compare'}, {self.evidence}"


def verdict(sqnr_db: float | None) -> str:
    """Return what a reader is to think of it: see the scale above."""
    if sqnr_db is None:
        return "unknown"
    scale = ((GOOD_DB, "good"), (FAIR_DB, "fair"), (LEAST_DB, "suspicious"))
    return next((word for least, word in scale if sqnr_db >= least), "broken")


def is_decibels(value: Any) -> bool:
    """Return whether ``value`` is a number to compare an SQNR with; infinite ones are."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def measure(
    expected: Sequence[Named],
    found: Sequence[Named],
    samples: int,
    against: str,
    were_learned: bool = False,
    are_shares: Sequence[bool] = (),
) -> Quality:
    """Compare what two models return, batch by batch.

    Args:
        expected, found: the named outputs of each batch, alike in names and shapes.
        samples: how many they are.
        against: what made ``expected``.
        were_learned: the model was calibrated on them.
        are_shares: which outputs are those of a sigmoid or softmax, in order; none, if it is not known.
    """
    by_name: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for wanted, given in zip(expected, found, strict=True):
        for (name, want), (_, have) in zip(wanted, given, strict=True):
            by_name.setdefault(name, []).append((want.detach(), have.detach().to(want.device)))
    shares = are_shares if len(are_shares) == len(by_name) else [False] * len(by_name)
    outputs = []
    for (name, pairs), is_share in zip(by_name.items(), shares, strict=True):
        seen = [(want, _without_small(want, have) if is_share else have) for want, have in pairs]
        outputs.append(OutputQuality(name, _sqnr_db(pairs), _agreement(pairs), _typical_db(seen), _lost(seen)))
    return Quality(tuple(outputs), samples, against, were_learned)


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


def _without_small(want: Tensor, have: Tensor) -> Tensor:
    """Return ``have`` without errors that are too small to count for a value between 0 and 1."""
    return torch.where((want - have).abs() < _SHARE_STEP, want, have)


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


def _typical_db(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Return the median over samples of the SQNR around the output's median; None where nothing varies."""
    found: list[Tensor] = []
    for want, have in pairs:
        if not want.is_floating_point() or not want.dim() or not want.numel():
            continue
        first, second = want.double(), have.double()
        counted = torch.isfinite(first) & ~_is_fill(first)
        centre = first[counted].median() if bool(counted.any()) else 0.0
        # Of one number for each sample, all of a batch say something together.
        shape = (len(first), -1) if first.dim() > 1 and first[0].numel() > 1 else (1, -1)
        signal_n = torch.where(counted, first - centre, 0.0).square().reshape(shape).sum(1)
        noise_n = torch.where(counted, first - second, 0.0).square().reshape(shape).sum(1)
        found.append((10 * torch.log10(signal_n / torch.nan_to_num(noise_n, nan=math.inf)))[signal_n > 0].cpu())
    values = torch.cat(found) if found else torch.empty(0)
    # Of an even count between the middle two: of two samples, one that is nearly silent does not decide alone.
    return statistics.median(values.tolist()) if values.numel() else None


def _is_fill(values: Tensor) -> Tensor:
    """Return where a mask has put its fill value: the lowest or highest, if it is huge and occurs more than once."""
    filled = torch.zeros_like(values, dtype=torch.bool)
    for extreme in (values.min(), values.max()):
        same = values == extreme
        if abs(float(extreme)) >= _FILL and int(same.sum()) > 1:
            filled |= same
    return filled


def _lost(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Return the share of channels, those of zeros aside, of which nothing is left; channels as in ``agreement``."""
    found = [(want, have) for want, have in pairs if want.is_floating_point() and want.dim() > 1 and want.numel()]
    axis = -1 if found and found[0][0].dim() == 3 else 1
    if not found or len({want.shape[axis] for want, _ in found}) > 1:
        return None
    first, second = (
        torch.cat([pair[side].double().movedim(axis, 0).flatten(1) for pair in found], 1) for side in (0, 1)
    )
    first = torch.where(torch.isfinite(first) & ~_is_fill(first), first, math.nan)
    signal_c, noise_c = first.square().nansum(1), (first - second).square().nansum(1)
    is_there = signal_c > 0
    if int(is_there.sum()) < 2:
        return None
    return float((signal_c < noise_c * 10 ** (_LOST_DB / 10))[is_there].double().mean())


def _badness(output: OutputQuality) -> tuple[int, float]:
    order = ("broken", "suspicious", "fair", "good", "unknown")
    figure = output.judged_db if output.judged_db is not None else output.agreement
    return order.index(output.verdict), math.inf if figure is None else figure
