"""Tune where the runtime refuses files or does not survive them: what was found is kept, and told."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.choosy_runtime import Choosy
from support.computed_times import SLOW_IN_INTEGERS, Builder, Clock, rules
from support.small import images
from torch import nn

import fxq
from fxq.errors import RuntimeCrashedError, RuntimeRefusedError
from fxq.runtimes import Latency, OpTime
from fxq.tuning.report import Tuned
from fxq.tuning.search import Search

DEFAULT, FLOAT, KEPT = "_", "_abcd", "_b"
AT_FIRST, AT_LAST = "the model in float", "calibrating the result"
BATCHES = [images(4, seed=5)]


class Deadly(Clock):
    """Where b is slow in integers: ``kills`` says, of what the search does and of the files, which do not run."""

    def __init__(self, kills: Callable[[str, list[str]], bool], error: type[Exception] = RuntimeCrashedError) -> None:
        super().__init__(SLOW_IN_INTEGERS)
        self.kills, self.error = kills, error
        self.stage, self.rounds, self.profiles = "", 0, True

    def say(self, text: str) -> None:
        self.stage = text.partition(";")[0]

    def files(self, paths: Sequence[Path], rounds: int) -> Sequence[Latency]:
        self.rounds = rounds
        names = [path.name for path in paths]
        if self.kills(self.stage, names):
            raise self.error(f"killed by {', '.join(names)}")
        return super().files(paths, rounds)

    def ops(self, path: Path) -> Sequence[OpTime]:
        if not self.profiles:
            raise self.error(f"killed by the profile of {path.name}")
        return super().ops(path)


@pytest.fixture(scope="module")
def builder() -> Builder:
    return Builder()


Run = Callable[[Deadly], Tuned]


@pytest.fixture
def run(builder: Builder) -> Run:
    return lambda clock: Search(builder, clock.files, clock.ops, clock.say).run("a clock")


@pytest.mark.parametrize("error", [RuntimeCrashedError, RuntimeRefusedError])
def test_a_default_that_does_not_run_is_one_clear_error(run: Run, error: type[Exception]) -> None:
    with pytest.raises(error, match="tune starts from the recipe's default, which cannot be timed: killed by _"):
        run(Deadly(lambda stage, names: True, error))


@pytest.mark.parametrize("error", [RuntimeCrashedError, RuntimeRefusedError])
def test_float_that_does_not_run_is_no_candidate_and_the_search_goes_on(run: Run, error: type[Exception]) -> None:
    tuned = run(Deadly(lambda stage, names: FLOAT in names, error))
    assert rules(tuned) == ["b"]
    assert tuned.notes == ("not timed: the model in float: killed by _, _, _abcd",)
    assert tuned.speedup.middle == 1.5
    assert tuned.to_dict()["median_ms"] == {"tuned": 6.0, "default": 9.0, "float": None}
    assert "1.50 (1.50 to 1.50) times as fast as the default\n" in _trimmed(tuned.table())
    assert "float     not timed" in tuned.table()


@pytest.mark.parametrize("error", [RuntimeCrashedError, RuntimeRefusedError])
def test_a_profile_that_does_not_end_well_leaves_the_other_candidates(run: Run, error: type[Exception]) -> None:
    clock = Deadly(lambda stage, names: False, error)
    clock.profiles = False
    tuned = run(clock)
    assert tuned.notes[0].startswith("regions were not looked for, without a profile of the default: killed by the pro")
    assert rules(tuned) == ["*"]


@pytest.mark.parametrize("error", [RuntimeCrashedError, RuntimeRefusedError])
def test_a_candidate_that_is_not_timed_again_is_not_taken(run: Run, error: type[Exception]) -> None:
    clock = Deadly(lambda stage, names: names == [FLOAT, KEPT] and clock.rounds > 300, error)
    tuned = run(clock)
    why = "regions by profile, a change of type counted 0 %"
    assert tuned.notes[0] == f"faster, but not timed again: {why}: killed by _abcd, _b"
    assert next(trial.verdict for trial in tuned.trials if trial.why == why) == "not again"
    assert rules(tuned) != ["b"]


def test_what_was_kept_and_does_not_run_at_last_gives_way_to_the_fastest_that_does(run: Run) -> None:
    tuned = run(Deadly(lambda stage, names: stage == AT_LAST and KEPT in names))
    assert rules(tuned) == ["*"]
    assert tuned.speedup.middle == 9 / 8
    assert tuned.reasons == ()
    assert tuned.notes == (
        "in the last measurement what the search kept did not run: killed by _b",
        "calibrated on the data, the model in float is the fastest that ran: taken instead",
    )


def test_a_default_that_does_not_run_at_last_leaves_what_was_kept(run: Run) -> None:
    tuned = run(Deadly(lambda stage, names: stage == AT_LAST and DEFAULT in names))
    assert rules(tuned) == ["b"]
    assert tuned.notes == ("in the last measurement the default did not run: killed by _",)
    assert (tuned.to_dict()["speedup"], tuned.to_dict()["speedup_interval"]) == (None, None)
    assert not tuned.speedup.is_slower
    assert "1.33 (1.33 to 1.33) times as fast as float\n" in _trimmed(tuned.table())


def test_where_nothing_runs_at_last_what_was_kept_is_returned(run: Run) -> None:
    tuned = run(Deadly(lambda stage, names: stage == AT_LAST))
    assert rules(tuned) == ["b"]
    assert [reason.partition(":")[0] for reason in tuned.reasons] == [
        "all", "regions by profile, a change of type counted 0 %",
    ]  # fmt: skip
    assert len(tuned.notes) == 4
    assert tuned.notes[-1] == "the result is what the search kept, not held to the default and to float once more"
    assert "not compared with the default, nor with float" in tuned.table()


def test_results_that_run_by_themselves_alone_are_not_compared(run: Run) -> None:
    tuned = run(Deadly(lambda stage, names: stage == AT_LAST and len(names) > 1))
    assert rules(tuned) == ["b"]
    assert tuned.notes == (
        "the results run, but did not in turn, they were not compared: killed by _, _abcd, _b",
        "the result is what the search kept, not held to the default and to float once more",
    )
    assert not tuned.speedup.is_known


def test_what_does_not_run_at_last_is_not_the_result_where_another_runs(run: Run) -> None:
    tuned = run(Deadly(lambda stage, names: stage == AT_LAST and (len(names) > 1 or names == ["_b"])))
    assert rules(tuned) == []
    assert tuned.notes[-2:] == (
        "others run, but did not in turn, they were not compared: killed by _, _abcd",
        "the result is the default, which runs",
    )


def test_a_crash_by_chance_at_last_is_told_and_the_second_try_counts(run: Run) -> None:
    crashes = iter([True])
    tuned = run(Deadly(lambda stage, names: stage == AT_LAST and next(crashes, False)))
    assert rules(tuned) == ["b"]
    assert tuned.notes == ("the results run, but did not in turn, in a second try they did: killed by _, _abcd, _b",)
    assert tuned.speedup.middle == 1.5


@pytest.mark.slow  # a process for each file and round; the crashes above are the same to the search
def test_a_real_crash_while_float_is_timed_leaves_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = _tuned(monkeypatch, deadly=("2.onnx",))
    assert tuned.notes[0].startswith(
        "not timed: the model in float: onnxruntime on 1.onnx, 1.onnx, 2.onnx: the process "
    )
    assert tuned.result is tuned.default
    assert tuned.in_float_latency.rounds_ms == ()
    assert rules(tuned) == []


@pytest.mark.slow
def test_real_crashes_in_the_profile_and_at_last_leave_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """3.onnx is the default, calibrated on the data; one group has no other candidates than float."""
    tuned = _tuned(monkeypatch, deadly=("3.onnx",), survives_profiles=False)
    said = "\n".join(tuned.notes)
    assert "without a profile of the default: onnxruntime's profile of 1.onnx: the process ended by signal SIG" in said
    assert "the default did not run: onnxruntime on 3.onnx: the process ended by signal SIGSEGV" in said
    assert rules(tuned) == ["*"]
    assert tuned.in_float_latency is tuned.result.latency
    assert not tuned.speedup.is_known


def test_a_real_crash_of_the_default_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        RuntimeCrashedError, match=r"recipe's default, which cannot be timed: onnxruntime on 1\.onnx: the"
    ):
        _tuned(monkeypatch, deadly=("1.onnx",))


def _tuned(monkeypatch: pytest.MonkeyPatch, **choosy: object) -> Tuned:
    """Tune a model of one layer in a runtime of somebody else."""
    monkeypatch.setattr("fxq.tuning.tuning.get_runtime", lambda name, **options: Choosy(**choosy, **options))
    return fxq.tune(nn.Sequential(nn.Conv2d(1, 4, 3)).eval(), BATCHES, threads=1, progress=False)


def _trimmed(table: str) -> str:
    return "\n".join(line.rstrip() for line in table.splitlines())
