"""How long calls take: medians of rounds that are made in turn."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fxq.errors import InputError


@dataclass(frozen=True)
class Latency:
    """How long a call took in each round, in milliseconds; no rounds: it was not timed."""

    rounds_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The usual time; nan of no rounds."""
        return statistics.median(self.rounds_ms) if self.rounds_ms else math.nan

    @property
    def usual(self) -> str:
        """The usual time in words."""
        return f"{self.median_ms:.3f} ms" if self.rounds_ms else "not timed"

    @property
    def spread_ms(self) -> float:
        """The distance between the quartiles: within it lies half of the rounds; 0 of less than two rounds."""
        if len(self.rounds_ms) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.rounds_ms, n=4, method="inclusive")
        return third - first

    def ratio(self, to: "Latency") -> float:
        """Return the median over the rounds of this time divided by the other's: what slows a round cancels out."""
        return self.ratio_quartiles(to)[1]

    def ratio_quartiles(self, to: "Latency") -> tuple[float, float, float]:
        """Return the quartiles over the rounds of this time divided by the other's; the second is their median."""
        ratios = [one / other for one, other in zip(self.rounds_ms, to.rounds_ms, strict=True)]
        if len(ratios) == 1:
            return ratios[0], ratios[0], ratios[0]
        first, second, third = statistics.quantiles(ratios, n=4, method="inclusive")
        return first, second, third

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ms, spread {self.spread_ms:.3f} ms, {len(self.rounds_ms)} rounds"


def time_in_turn(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Make the calls in turn, so that a busy machine slows all of them, and return their times.

    Every second round runs backwards, so that none always follows the same neighbour, which leaves it a cold cache. The
    rounds of the warm-up come first and are not counted: memory is allocated and kernels are chosen in them.

    Args:
        calls: by name.
        rounds, warm_up: how often each is made, counted or not.
        clock: in seconds; ``time.process_time`` is what this process computed, however busy the machine is.

    Raises:
        InputError: there is no round to count.
    """
    if rounds < 1 or warm_up < 0:
        raise InputError(f"rounds must be at least 1 and warm_up at least 0; got {rounds} and {warm_up}")
    times_ms: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(warm_up + rounds):
        for name in list(calls)[:: -1 if index % 2 else 1]:
            start = clock()
            calls[name]()
            times_ms[name].append(1e3 * (clock() - start))
    return {name: Latency(tuple(values[warm_up:])) for name, values in times_ms.items()}
