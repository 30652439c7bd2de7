"""Calls in a process of their own: results, errors, and what becomes of a crash."""

import operator
import os
from pathlib import Path

import pytest
from support.crashing_runtime import Crashing, leave, wait

from fxq.errors import RuntimeCrashedError, RuntimeRefusedError
from fxq.runtimes import get_runtime
from fxq.runtimes.child import in_child


def test_a_call_returns_what_it_returns_here() -> None:
    assert in_child(operator.add, (1, 2), (3,), what="sum") == (1, 2, 3)
    assert in_child(os.getpid, what="number") != os.getpid()


def test_an_error_of_fxq_is_raised_here(tmp_path: Path) -> None:
    runtime = get_runtime("onnxruntime")
    with pytest.raises(RuntimeRefusedError, match=r"none\.onnx: there is no such file"):
        in_child(runtime.executed_ops, tmp_path / "none.onnx", what="nothing")


def test_a_crash_names_its_signal() -> None:
    with pytest.raises(RuntimeCrashedError, match=r"^onnxruntime on x: the process ended by signal SIGSEGV"):
        in_child(Crashing().executed_ops, "x", what="onnxruntime on x")


def test_an_exit_has_its_code_and_its_last_words() -> None:
    with pytest.raises(RuntimeCrashedError, match=r"it: the process ended with code 3; its last words: no more memory"):
        in_child(leave, 3, what="it")


def test_what_takes_too_long_is_ended() -> None:
    with pytest.raises(RuntimeCrashedError, match="it: not done after 1 s"):
        in_child(wait, 60.0, what="it", timeout_s=1)


def test_a_module_of_the_working_directory_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pickle.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert in_child(operator.neg, 3, what="it") == -3
