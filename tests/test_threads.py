"""Several threads use fxq at once, and processes are forked meanwhile: nothing of it shows in the results."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support.installed import run_python
from torch import Tensor, nn

import fxq
from fxq.registry import tables

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Slow(nn.Module):
    """Lets other threads run in the midst of its forward, which runs while it is traced."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: time.sleep(0.02)) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        generator = torch.Generator().manual_seed(1)  # the default one is shared by the threads
        for parameter in self.parameters():
            parameter.data.copy_(torch.rand(parameter.shape, generator=generator) - 0.4)
        self.__dict__["meanwhile"] = meanwhile

    def __deepcopy__(self, memo: object) -> "Slow":
        copied = Slow(self.meanwhile).eval()
        copied.load_state_dict(self.state_dict())
        return copied

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.meanwhile()
        return self.second(x).relu() + torch.zeros(x.shape[0], 1)


def test_threads_prepare_models_of_their_own() -> None:
    def graph(_: int) -> str:
        return str(fxq.prepare(Slow().eval(), X).graph)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(graph, range(4))) == {graph(0)}


def test_threads_export_models_of_their_own(tmp_path: Path) -> None:
    def export(name: str) -> int:
        converted = fxq.quantize(Slow().eval(), [X], progress=False)
        return fxq.export_onnx(converted, tmp_path / name).quantize_nodes

    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(export, ("a.onnx", "b.onnx"))] == [2, 2]


def test_a_model_runs_as_ever_while_another_thread_traces_one() -> None:
    mine, tracing, done = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), threading.Event(), threading.Event()
    expected = mine(X)

    def wait() -> None:
        tracing.set()
        done.wait(10)

    with ThreadPoolExecutor(1) as pool:
        prepared = pool.submit(fxq.prepare, Slow(wait).eval())
        assert tracing.wait(10)
        assert torch.equal(mine(X), expected)
        done.set()
        assert prepared.result() is not None


FORKS = """
import os, threading, time, warnings
from concurrent.futures import ThreadPoolExecutor
import torch
from torch import nn
import fxq

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 3)

    def forward(self, x):
        tracing.set()
        time.sleep(0.3)
        return self.first(x)

tracing, call, x = threading.Event(), nn.Module.__call__, torch.ones(2, 4)
warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads
# All that the child will call was called before: a first call of torch's takes a lock of the C library, which may be
# held by another thread when the process is forked, and is then held in the child for ever.
fxq.prepare(nn.Linear(4, 3).eval(), x)(x)
with ThreadPoolExecutor(1) as pool:
    prepared = pool.submit(fxq.prepare, Slow().eval())
    assert tracing.wait(60)
    child = os.fork()
    if child == 0:
        try:
            is_plain = nn.Module.__call__ is call  # tracing replaces it
            os._exit(0 if is_plain and fxq.prepare(nn.Linear(4, 3).eval(), x)(x).shape == (2, 3) else 1)
        finally:
            os._exit(2)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), prepared.result().graph.output_node().op)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_process_forked_while_another_thread_traces_works_in_the_child(tmp_path: Path) -> None:
    # In a process of its own: libraries that other tests have loaded here have threads that no fork survives.
    assert run_python(FORKS, tmp_path).split() == ["0", "output"]


def test_the_first_threads_wait_until_the_passes_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(tables.passes)

    def load(entry: object) -> None:
        tables.loading.append(entry)
        time.sleep(0.05)
        tables.passes.update(known)
        tables.loading.pop()

    monkeypatch.setattr(tables, "loaded", set())  # so that the entry points are looked at again
    monkeypatch.setattr(tables, "searched", [])
    monkeypatch.setattr(tables, "passes", {})
    monkeypatch.setattr("fxq.registry.plugins._load_passes", load)
    with ThreadPoolExecutor(3) as pool:
        assert [*pool.map(lambda _: len(fxq.registered_passes()), range(3))] == [len(known)] * 3
