"""The search of tune: build a candidate, time it in turn with the fastest by then, keep it where it is faster twice.

What wins is calibrated on the data, and timed once more with the default and with float; the fastest is returned. What
the runtime refuses or does not survive is left out with a note; the default alone has to run.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch.fx import GraphModule

from fxq.errors import RuntimeUnavailableError
from fxq.graph.groups import find_groups
from fxq.progress import Say
from fxq.runtimes import Latency
from fxq.runtimes.surviving import DOES_NOT_RUN, time_survivors
from fxq.sensitivity import check_one_graph
from fxq.tuning.building import Built, FloatRules
from fxq.tuning.regions import (
    Candidate,
    GroupTimes,
    halves,
    kinds_in_float,
    regions_in_float,
    runs_of,
    times_of_groups,
)
from fxq.tuning.report import Measured, Trial, Tuned
from fxq.tuning.timing import Speedup, TimeFiles, TimeOps, is_noisy, is_too_noisy, noise_of, rounds_for

_NOTHING = frozenset[int]()
_NOT_TIMED = Latency(())
# Shares of the total time: of a smaller region a difference does not show; a larger loss by the profile is believed.
_SHOWS, _DOUBT = 0.05, 0.01


class Builds(Protocol):
    """Makes models and their files: :class:`fxq.tuning.building.Builder`."""

    def candidate(self, rules: FloatRules) -> tuple[GraphModule, Path]:
        """Return the prepared model with more rules, and its file."""

    def result(self, rules: FloatRules) -> Built:
        """Return the model as it is used, with more rules."""


class _OutOfTimeError(Exception):
    """The budget is used up."""


class Search:
    """One search.

    Args:
        builder: makes the models.
        time_files: times files against each other.
        time_ops: the profile of one file.
        say: shows what is known so far.
        budget_s: as of ``tune``.
    """

    def __init__(
        self, builder: Builds, time_files: TimeFiles, time_ops: TimeOps, say: Say, budget_s: float | None = None
    ) -> None:
        self._builder, self._time_files, self._time_ops = builder, time_files, time_ops
        self._say, self._budget_s = say, budget_s
        self._start = time.perf_counter()
        self._files: dict[frozenset[int], Path] = {}
        self._trials: list[Trial] = []
        self._notes: list[str] = []
        self._reasons: list[str] = []
        self._best = _NOTHING

    def run(self, runtime: str) -> Tuned:
        """Return the fastest; errors as of ``tune``.

        Args:
            runtime: in words, for the report.
        """
        self._say("the recipe's default")
        self._prepared, default = self._builder.candidate(())
        self._groups = find_groups(self._prepared, check_one_graph(self._prepared).settings.target)
        self._all = frozenset(range(len(self._groups)))
        self._files[_NOTHING] = default
        self._say("the model in float")
        in_float = self._file(self._all)
        self._rounds = rounds_for(self._times_of_default([default], 5))
        once, again, of_float = self._first_times(default, in_float)
        if is_noisy(noise_of(once, again)):
            self._rounds *= 2
            once, again, of_float = self._first_times(default, None if of_float is None else in_float)
        self._float_runs = of_float is not None
        self._noise = noise_of(once, again)
        if is_too_noisy(self._noise):
            self._notes.append(
                f"the machine is too noisy to tell: the same file differs from itself by {100 * self._noise:.0f} %. "
                "Run tune again when nothing else runs"
            )
        try:
            if not self._groups:
                self._notes.append("the recipe quantizes nothing of this model")
            else:
                if of_float is not None:
                    self._judge(Candidate(self._all, "all"), of_float, once)
                self._try_candidates()
        except KeyboardInterrupt:
            self._notes.append("interrupted: this is the fastest by then")
        except _OutOfTimeError:
            self._notes.append(f"the budget of {self._budget_s:g} s ended the search")
        return self._result(runtime)

    def _first_times(self, default: Path, in_float: Path | None) -> tuple[Latency, Latency, Latency | None]:
        """Return the times of the default, twice, and of float; None, with a note, where that does not run."""
        if in_float is not None:
            try:
                once, again, of_float = self._time_files([default, default, in_float], self._rounds)
            except DOES_NOT_RUN as error:
                self._notes.append(f"not timed: the model in float: {error}")
            else:
                return once, again, of_float
        once, again = self._times_of_default([default, default], self._rounds)
        return once, again, None

    def _times_of_default(self, files: Sequence[Path], rounds: int) -> Sequence[Latency]:
        try:
            return self._time_files(files, rounds)
        except DOES_NOT_RUN as error:
            raise type(error)(f"tune starts from the recipe's default, which cannot be timed: {error}") from error

    def _try_candidates(self) -> None:
        times = self._group_times()
        found = [*kinds_in_float(self._groups), *(regions_in_float(times) if times is not None else ())]
        if times is not None:
            found.sort(key=lambda one: times.total_ms(one.in_float))
        for candidate in found:
            self._try(candidate)
        if times is not None:
            self._try_regions(times)

    def _try_regions(self, times: GroupTimes) -> None:
        """Turn regions of the best over, where the profile does not speak against it; then parts of them."""
        waiting = runs_of(self._best, len(self._groups))
        while waiting:
            region = min(waiting, key=lambda one: times.total_ms(self._turned(one)))
            waiting.remove(region)
            if self._is_worth_a_try(region, times):
                last = self._groups[region[-1]].path
                where = self._groups[region.start].path + (f" to {last}" if len(region) > 1 else "")
                word = "in integers again" if region.start in self._best else "too"
                if self._try(Candidate(self._turned(region), f"{where} {word}")):
                    waiting = runs_of(self._best, len(self._groups))
                    continue
            if len(region) > 1:
                waiting += halves(region, self._groups)

    def _is_worth_a_try(self, region: range, times: GroupTimes) -> bool:
        """Return whether a region is large enough for a difference to show, and may well be faster turned over."""
        total, turned = times.total_ms(self._best), times.total_ms(self._turned(region))
        share = sum(max(times.integer_ms[index], times.float_ms[index]) for index in region) / total
        return share >= _SHOWS and turned <= (1 + _DOUBT) * total

    def _turned(self, region: range) -> frozenset[int]:
        return self._best - set(region) if region.start in self._best else self._best | set(region)

    def _group_times(self) -> GroupTimes | None:
        """Return what a profile says of each group; None, with a note, where the runtime makes none."""
        found = []
        for one in (_NOTHING, self._all):
            try:
                ops = self._time_ops(self._files[one])
            except (RuntimeUnavailableError, *DOES_NOT_RUN) as error:
                self._notes.append(f"regions were not looked for, without a profile of {self._name(one)}: {error}")
                return None
            found.append(times_of_groups(self._prepared, self._groups, ops))
        return GroupTimes(*found)

    def _try(self, candidate: Candidate) -> bool:
        """Return whether a candidate is the fastest now."""
        if candidate.in_float in self._files:
            return False
        if self._budget_s is not None and self._seconds > self._budget_s:
            raise _OutOfTimeError
        self._say(f"trying {candidate.why} in float; {self._known}")
        try:
            file = self._file(candidate.in_float)
            best, found = self._time_files([self._files[self._best], file], self._rounds)
        except DOES_NOT_RUN as error:
            self._notes.append(f"not timed: {candidate.why}: {error}")
            return False
        return self._judge(candidate, found, best)

    def _judge(self, candidate: Candidate, found: Latency, best: Latency) -> bool:
        """Keep a candidate that is faster than the best, now and once more."""
        speedup = Speedup.of(found, best)
        verdict = "slower" if speedup.is_slower else "no difference"
        if speedup.is_faster(self._noise):
            verdict = "faster" if self._is_faster_again(candidate) else "not again"
        is_kept = verdict == "faster"
        if is_kept:
            self._best = candidate.in_float
            self._reasons.append(f"{candidate.why}: {speedup} times as fast")
        self._trials.append(Trial(candidate.why, len(candidate.in_float), found, speedup, verdict))
        return is_kept

    def _is_faster_again(self, candidate: Candidate) -> bool:
        files = [self._files[self._best], self._files[candidate.in_float]]
        try:
            best, found = self._time_files(files, 2 * self._rounds)
        except DOES_NOT_RUN as error:
            self._notes.append(f"faster, but not timed again: {candidate.why}: {error}")
            return False
        return Speedup.of(found, best).is_faster(self._noise)

    def _file(self, in_float: frozenset[int]) -> Path:
        if in_float not in self._files:
            self._files[in_float] = self._builder.candidate(self._rules(in_float))[1]
        return self._files[in_float]

    def _rules(self, in_float: frozenset[int]) -> tuple[tuple[str, None], ...]:
        if in_float and in_float == self._all:
            return (("*", None),)
        return tuple((path, None) for index in sorted(in_float) for path in self._groups[index].paths)

    def _name(self, in_float: frozenset[int]) -> str:
        return {self._all: "the model in float", _NOTHING: "the default"}.get(in_float, "what the search kept")

    def _result(self, runtime: str) -> Tuned:
        """Calibrate what won, and return it, or what is faster after all."""
        self._say(f"calibrating the result; {self._known}")
        chosen = list(dict.fromkeys((_NOTHING, self._all, self._best) if self._float_runs else (_NOTHING, self._best)))
        # Of the model in float the file is made already: it has no ranges.
        built = {one: self._builder.result(self._rules(one)) for one in chosen if one != self._all or not one}
        times, dead = self._last_times({one: built[one].path if one in built else self._files[one] for one in chosen})
        best = self._fastest(times, dead)
        default = _measured(built[_NOTHING], times[_NOTHING])
        result = default
        if best != _NOTHING:
            result = _measured(built[best] if best in built else self._builder.result(self._rules(best)), times[best])
        return Tuned(
            result, default, times.get(self._all, _NOT_TIMED),
            tuple(self._groups[index].paths for index in sorted(best)), len(self._groups),
            tuple(self._reasons) if best == self._best else (), runtime, self._noise,
            tuple(self._trials), tuple(self._notes), self._seconds,
        )  # fmt: skip

    def _last_times(
        self, paths: dict[frozenset[int], Path]
    ) -> tuple[dict[frozenset[int], Latency], set[frozenset[int]]]:
        """Return the times of the results in turn, and which do not run; of these there is none, and a note."""
        timed = time_survivors(lambda files: self._time_files(files, 2 * self._rounds), list(paths.values()))
        dead = {list(paths)[place] for place in timed.errors}
        for place, error in timed.errors.items():
            self._notes.append(f"in the last measurement {self._name(list(paths)[place])} did not run: {error}")
        if timed.failure:
            what_then = "in a second try they did" if timed.in_turn else "they were not compared"
            self._notes.append(
                f"{'others' if dead else 'the results'} run, but did not in turn, {what_then}: {timed.failure}"
            )
        found = [latency if timed.in_turn else None for latency in timed.latencies]
        return {one: latency or _NOT_TIMED for one, latency in zip(paths, found, strict=True)}, dead

    def _fastest(self, times: dict[frozenset[int], Latency], dead: set[frozenset[int]]) -> frozenset[int]:
        """Return the result by the last measurement, in which neither the default nor float is faster."""
        timed = [one for one in times if times[one].rounds_ms]
        is_held = self._best in timed
        running = [one for one in (self._best, _NOTHING, self._all) if one in times and one not in dead]
        best = self._best if is_held or not running else (timed or running)[0]
        for other in timed:
            if Speedup.of(times[other], times[best]).is_faster(0.0):
                best = other
        if not timed and best != self._best:
            self._notes.append(f"the result is {self._name(best)}, which runs")
        elif not timed:
            self._notes.append("the result is what the search kept, not held to the default and to float once more")
        elif best != self._best:
            why = "faster than what the search kept" if is_held else "the fastest that ran"
            self._notes.append(f"calibrated on the data, {self._name(best)} is {why}: taken instead")
        if self._groups and (is_held or (not timed and best == self._best)):
            if best == _NOTHING:
                self._notes.append("nothing that was tried is faster than the default")
            if best == self._all:
                self._notes.append("nothing that was tried is faster than float: nothing is quantized")
        return best

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def _known(self) -> str:
        kept = f"{len(self._best)} of {len(self._groups)} groups in float are the fastest"
        return f"{kept}, {len(self._trials)} tried in {self._seconds:.0f} s"


def _measured(built: Built, latency: Latency) -> Measured:
    return Measured(built.converted, built.recipe, latency, built.quality)
