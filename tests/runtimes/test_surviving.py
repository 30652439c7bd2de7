"""Files in turn, and what becomes of the others where one ends the process."""

from collections.abc import Callable, Sequence

import pytest

from fxq.errors import RuntimeCrashedError, RuntimeRefusedError
from fxq.runtimes import Latency
from fxq.runtimes.surviving import Timed, time_survivors


class Clock:
    """Times files, and fails where ``why_not`` has words; each call has a time of its own."""

    def __init__(self, why_not: Callable[[str, int], str], error: type[Exception] = RuntimeCrashedError) -> None:
        self.why_not, self.error = why_not, error
        self.calls: list[str] = []

    def __call__(self, files: Sequence[str]) -> Sequence[Latency]:
        self.calls.append("".join(files))
        words = self.why_not(self.calls[-1], len(self.calls))
        if words:
            raise self.error(words)
        return [Latency((float(len(self.calls)),)) for _ in files]


def in_call(number: int) -> Latency:
    return Latency((float(number),))


def test_files_that_run_are_timed_in_turn_and_no_further() -> None:
    clock = Clock(lambda files, call: "")
    assert time_survivors(clock, "abc") == Timed((in_call(1),) * 3)
    assert clock.calls == ["abc"]


@pytest.mark.parametrize("error", [RuntimeCrashedError, RuntimeRefusedError])
def test_one_that_does_not_run_is_named_and_the_others_are_timed_in_turn(error: type[Exception]) -> None:
    clock = Clock(lambda files, call: f"killed in {files}" if "b" in files else "", error)
    assert time_survivors(clock, "abc") == Timed((in_call(5), None, in_call(5)), {1: "killed in b"})
    assert clock.calls == ["abc", "a", "b", "c", "ac"]


def test_the_only_one_that_runs_is_timed_once() -> None:
    clock = Clock(lambda files, call: f"killed in {files}" if "a" in files else "")
    assert time_survivors(clock, "ab") == Timed((None, in_call(3)), {0: "killed in a"})
    assert clock.calls == ["ab", "a", "b"]


def test_a_file_alone_is_not_tried_again() -> None:
    clock = Clock(lambda files, call: "killed")
    assert time_survivors(clock, "a") == Timed((None,), {0: "killed"})
    assert clock.calls == ["a"]


def test_files_that_run_by_themselves_alone_keep_those_times_and_are_not_comparable() -> None:
    clock = Clock(lambda files, call: f"killed in {files}" if len(files) > 1 else "")
    assert time_survivors(clock, "ab") == Timed((in_call(2), in_call(3)), {}, "killed in ab", in_turn=False)


def test_a_crash_by_chance_is_told_and_the_second_try_counts() -> None:
    clock = Clock(lambda files, call: "killed" if call == 1 else "")
    assert time_survivors(clock, "ab") == Timed((in_call(4), in_call(4)), {}, "killed")


def test_an_error_of_the_caller_is_raised() -> None:
    with pytest.raises(ValueError, match="wrong"):
        time_survivors(Clock(lambda files, call: "wrong", ValueError), "ab")
