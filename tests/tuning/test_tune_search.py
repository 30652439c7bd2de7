"""The search of tune, with times that are computed: what is faster is kept, and nothing else."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.computed_times import CONVERSION, FAST_IN_FLOAT, SLOW_IN_INTEGERS, Builder, Clock, rules

from fxq.errors import RuntimeCrashedError, RuntimeUnavailableError
from fxq.runtimes import Latency, OpTime
from fxq.tuning.report import Tuned
from fxq.tuning.search import Search
from fxq.tuning.timing import Speedup


@pytest.fixture(scope="module")
def builder() -> Builder:
    return Builder()


Run = Callable[..., Tuned]


@pytest.fixture
def run(builder: Builder) -> Run:
    def run(clock: Clock, budget_s: float | None = None) -> Tuned:
        return Search(builder, clock.files, clock.ops, lambda text: None, budget_s).run("a clock")

    return run


def test_a_layer_that_is_slow_in_integers_is_left_in_float_and_no_other(run: Run) -> None:
    tuned = run(Clock(SLOW_IN_INTEGERS))
    assert rules(tuned) == ["b"]
    assert tuned.in_float == (("b",),)
    assert tuned.result.latency.median_ms == 1 + 2 + 1 + 1 + 2 * CONVERSION
    assert tuned.default.latency.median_ms == 9
    assert tuned.in_float_latency.median_ms == 8
    assert tuned.speedup.middle == 1.5
    first, second = tuned.reasons
    assert first == "all: 1.12 (1.12 to 1.12) times as fast"
    assert second.startswith("regions by profile, a change of type counted 0 %: 1.33")
    assert tuned.notes == ()
    assert "1 of 4 groups" in tuned.table()
    assert tuned.to_dict()["speedup"] == 1.5


def test_conversions_are_counted_as_they_are_timed(run: Run) -> None:
    """b and d alone would gain 0.1 each, and cost a conversion on either side."""
    tuned = run(Clock({"a": (1.0, 2.0), "b": (1.0, 0.9), "c": (1.0, 2.0), "d": (1.0, 0.9)}))
    assert rules(tuned) == []
    assert tuned.notes == ("nothing that was tried is faster than the default",)
    assert {trial.verdict for trial in tuned.trials} == {"slower"}
    assert len(tuned.trials) > 1
    assert tuned.result is tuned.default


def test_a_region_of_the_best_is_turned_back(run: Run) -> None:
    """By the profile d is as fast in float; what is measured is that it is not."""

    class Misled(Clock):
        def ops(self, path: Path) -> Sequence[OpTime]:
            told = 1.99 if "d" in path.name else 2.0
            return [OpTime(one.name, told if one.name == "d/Conv" else one.ms) for one in self.cost(path)]

    tuned = run(Misled({"a": (4.0, 1.0), "b": (4.0, 1.0), "c": (4.0, 1.0), "d": (1.0, 2.0)}))
    assert rules(tuned) == ["a", "b", "c"]
    assert tuned.reasons[-1] == "d in integers again: 1.11 (1.11 to 1.11) times as fast"


def test_where_float_is_fastest_it_is_returned(run: Run) -> None:
    tuned = run(Clock(FAST_IN_FLOAT))
    assert rules(tuned) == ["*"]
    assert tuned.in_float == (("a",), ("b",), ("c",), ("d",))
    assert tuned.notes == ("nothing that was tried is faster than float: nothing is quantized",)


def test_a_gain_that_does_not_come_again_is_not_believed(run: Run) -> None:
    class Lucky(Clock):
        def files(self, paths: Sequence[Path], rounds: int) -> Sequence[Latency]:
            found = super().files(paths, rounds)
            return found[::-1] if len(paths) == 2 else found

    tuned = run(Lucky(FAST_IN_FLOAT))
    assert tuned.trials[0].verdict == "not again"
    assert "faster" not in {trial.verdict for trial in tuned.trials}


def test_the_result_is_held_to_the_default_once_more(run: Run) -> None:
    """A candidate is calibrated on little; calibrated on the data it may take longer."""

    class Late(Clock):
        def files(self, paths: Sequence[Path], rounds: int) -> Sequence[Latency]:
            if len(paths) == 3 and self.calls > 3:
                self.costs = dict.fromkeys("abcd", (1.0, 5.0))
            return super().files(paths, rounds)

    tuned = run(Late(SLOW_IN_INTEGERS))
    assert rules(tuned) == []
    assert "the default is faster than what the search kept: taken instead" in tuned.notes[0]
    assert tuned.reasons == ()


def test_too_noisy_a_machine_is_told_and_nothing_is_kept(run: Run) -> None:
    tuned = run(Clock(SLOW_IN_INTEGERS, scatter=(1.0, 3.0, 0.4)))
    assert tuned.notes[0].startswith("the machine is too noisy to tell: the same file differs from itself by ")
    assert rules(tuned) == []
    assert tuned.noise > 0.1


def test_an_interruption_keeps_the_fastest_by_then(run: Run) -> None:
    class Interrupted(Clock):
        def ops(self, path: Path) -> Sequence[OpTime]:
            raise KeyboardInterrupt

    tuned = run(Interrupted(FAST_IN_FLOAT))
    assert tuned.notes[0] == "interrupted: this is the fastest by then"
    assert rules(tuned) == ["*"]


def test_a_budget_ends_the_search(run: Run) -> None:
    tuned = run(Clock(SLOW_IN_INTEGERS), budget_s=1e-9)
    assert tuned.notes[0] == "the budget of 1e-09 s ended the search"
    assert [trial.why for trial in tuned.trials] == ["all"]


def test_without_a_profile_kinds_are_tried_alone_and_that_is_told(run: Run) -> None:
    class Silent(Clock):
        def ops(self, path: Path) -> Sequence[OpTime]:
            raise RuntimeUnavailableError("it does not tell")

    tuned = run(Silent(SLOW_IN_INTEGERS))
    assert tuned.notes[0] == "regions were not looked for, without a profile of the default: it does not tell"


def test_a_file_that_the_runtime_does_not_survive_is_no_candidate(run: Run) -> None:
    class Crashing(Clock):
        def files(self, paths: Sequence[Path], rounds: int) -> Sequence[Latency]:
            if "_b" in {path.name for path in paths}:
                raise RuntimeCrashedError("killed by _b")
            return super().files(paths, rounds)

    tuned = run(Crashing(SLOW_IN_INTEGERS))
    assert tuned.notes[0] == "not timed: regions by profile, a change of type counted 0 %: killed by _b"
    assert rules(tuned) != ["b"]


def test_the_interval_of_a_speedup_is_that_of_order_statistics() -> None:
    slow, fast = Latency(tuple(float(2 * turn) for turn in range(1, 101))), Latency(tuple(map(float, range(1, 101))))
    assert Speedup.of(fast, slow) == Speedup(2.0, 2.0, 2.0)
    scattered = Latency(tuple(map(float, range(100, 200))))
    found = Speedup.of(Latency((100.0,) * 100), scattered)
    # 50 +- 2.33 * 10 / 2 of the sorted ratios 1.00 to 1.99.
    assert (found.low, found.high) == pytest.approx((1.38, 1.61))
    assert found.middle == pytest.approx(1.495)
    assert found.is_faster(0.4)
    assert not found.is_faster(0.5)
    assert not found.is_slower
