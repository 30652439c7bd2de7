"""How long a file takes: rounds in turn, a warm-up that is not counted, threads that sleep."""

import statistics
import time

import numpy as np
import pytest
from support.runtime_files import RuntimeFiles
from support.small import images

from fxq.errors import InputError
from fxq.runtimes import Latency, get_runtime, time_in_turn

X = images(4).numpy()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_file_is_timed_in_milliseconds(files: RuntimeFiles, name: str) -> None:
    start = time.perf_counter()
    latency = get_runtime(name, threads=1).latency(files.static[name], [X], rounds=7, warm_up=2)
    whole_ms = 1e3 * (time.perf_counter() - start)
    assert len(latency.rounds_ms) == 7
    assert 0 < latency.median_ms < whole_ms


def test_median_spread_and_ratio_are_those_of_the_rounds() -> None:
    latency = Latency((4.0, 1.0, 2.0, 3.0, 100.0))
    assert (latency.median_ms, latency.spread_ms) == (3, 2)  # quartiles 2 and 4: one slow round moves neither
    # A round in which both were slow counts as any other.
    assert latency.ratio(to=Latency((2.0, 0.5, 1.0, 1.0, 50.0))) == 2
    assert Latency((3.0,)).spread_ms == 0
    assert str(latency) == "3.000 ms, spread 2.000 ms, 5 rounds"


def test_calls_take_turns_there_and_back_and_the_warm_up_is_not_counted() -> None:
    made: list[str] = []
    times = time_in_turn({"a": lambda: made.append("a"), "b": lambda: made.append("b")}, rounds=3, warm_up=1)
    assert "".join(made) == "ab ba ab ba".replace(" ", "")
    assert [len(latency.rounds_ms) for latency in times.values()] == [3, 3]


def test_the_time_of_the_cpu_is_that_of_this_process_alone() -> None:
    times = time_in_turn({"sleeps": lambda: time.sleep(0.05)}, rounds=3, clock=time.process_time)
    assert times["sleeps"].median_ms < 25


@pytest.mark.parametrize(("rounds", "warm_up"), [(0, 1), (1, -1)])
def test_no_rounds_are_refused(rounds: int, warm_up: int) -> None:
    with pytest.raises(InputError, match="rounds must be at least 1"):
        time_in_turn({}, rounds, warm_up)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads_are_counted_from_one(name: str, threads: object) -> None:
    with pytest.raises(InputError, match="threads must be a whole number from 1 on"):
        get_runtime(name, threads=threads)


def test_threads_of_onnxruntime_sleep_between_runs(files: RuntimeFiles) -> None:
    run_once = get_runtime("onnxruntime", threads=2).bind(files.dynamic["onnxruntime"], np.repeat(X, 64, axis=0))
    burned_ms = []
    for _ in range(5):
        run_once()
        start = time.process_time()
        time.sleep(0.02)
        burned_ms.append(1e3 * (time.process_time() - start))
    # A thread that spins burns about 10 of the 20 ms; one that sleeps 0.05.
    assert statistics.median(burned_ms) < 2
