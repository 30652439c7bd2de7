"""How a file's time is compared with another's, and what can be told of it on this machine."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fxq.runtimes import Latency, OpTime, Runtime
from fxq.runtimes.child import in_child

# Files, and how many rounds: the time of each in each round.
TimeFiles = Callable[[Sequence[Path], int], Sequence[Latency]]
TimeOps = Callable[[Path], Sequence[OpTime]]

# A smaller gain is not worth a rule.
LEAST_GAIN = 0.01
_NOISY, _TOO_NOISY = 0.03, 0.1
_SECONDS, _FEWEST, _MOST = 3.0, 20, 300
_NORMAL_99 = 2.33


@dataclass(frozen=True)
class Speedup:
    """How many times as fast one file is as another: the median over rounds in turn, and what it lies in (98 %)."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, one: Latency, than: Latency) -> "Speedup":
        """Compare rounds pairwise: what slows the machine in one of them slows both.

        The interval is that of order statistics, n/2 +- 2.33 sqrt(n)/2, which supposes no distribution. Where one was
        not timed all is nan, which is neither faster nor slower.
        """
        if not (one.rounds_ms and than.rounds_ms):
            return cls(math.nan, math.nan, math.nan)
        ratios = sorted(slow / fast for fast, slow in zip(one.rounds_ms, than.rounds_ms, strict=True))
        count = len(ratios)
        below = max(0, math.floor((count - _NORMAL_99 * math.sqrt(count)) / 2))
        return cls(ratios[below], than.ratio(one), ratios[count - 1 - below])

    def is_faster(self, noise: float) -> bool:
        """Return whether it is faster by more than ``noise`` (a share), and not by chance."""
        return self.low > 1 and self.middle > 1 + max(LEAST_GAIN, noise)

    @property
    def is_slower(self) -> bool:
        """Is it slower, and not by chance?"""
        return self.high < 1

    @property
    def is_known(self) -> bool:
        """Were both timed?"""
        return not math.isnan(self.middle)

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def noise_of(first: Latency, again: Latency) -> float:
    """Return how far apart, as a share, a file is from itself: less cannot be told on this machine."""
    apart = Speedup.of(first, again)
    return max(1 - apart.low, apart.high - 1)


def is_noisy(noise: float) -> bool:
    """Return whether more rounds are worth their time."""
    return noise > _NOISY


def is_too_noisy(noise: float) -> bool:
    """Return whether so little can be told that the result says little."""
    return noise > _TOO_NOISY


def rounds_for(times: Sequence[Latency]) -> int:
    """Return in how many rounds two files are told apart, in about three seconds."""
    usual_s = max(time.median_ms for time in times) / 1e3
    return min(_MOST, max(_FEWEST, int(_SECONDS / (2 * usual_s))))


def timing_of(runtime: Runtime, inputs: Sequence[np.ndarray]) -> tuple[TimeFiles, TimeOps]:
    """Return functions that time files in a runtime, each time in a process of its own.

    Raises (the functions):
        RuntimeRefusedError, RuntimeCrashedError, RuntimeUnavailableError: of the runtime.
    """
    given = list(inputs)

    def time_files(paths: Sequence[Path], rounds: int) -> Sequence[Latency]:
        pairs = [(path, given) for path in paths]
        what = f"{runtime.name} on {', '.join(path.name for path in paths)}"
        return in_child(runtime.latencies, pairs, rounds, what=what)

    def time_ops(path: Path) -> Sequence[OpTime]:
        return in_child(runtime.op_times, path, given, what=f"{runtime.name}'s profile of {path.name}")

    return time_files, time_ops
