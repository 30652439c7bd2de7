"""Files run in real runtimes: the numbers, and what is refused."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from support.installed import run_python
from support.runtime_files import RuntimeFiles
from support.small import images

from fxq.errors import InputError, RuntimeRefusedError, RuntimeUnavailableError
from fxq.runtimes import get_runtime

RUNNING = ("onnxruntime", "openvino")
X = images(4).numpy()


@pytest.fixture(scope="module")
def difference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file that computes a - b of shapes (2, batch) and (2, 1)."""
    ends = [
        helper.make_tensor_value_info("a", TensorProto.FLOAT, (2, "batch")),
        helper.make_tensor_value_info("b", TensorProto.FLOAT, (2, 1)),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, "batch")),
    ]
    graph = helper.make_graph([helper.make_node("Sub", ["a", "b"], ["y"])], "difference", ends[:2], ends[2:])
    path = tmp_path_factory.mktemp("difference") / "difference.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize("name", RUNNING)
def test_outputs_are_those_of_the_converted_module(files: RuntimeFiles, name: str) -> None:
    with torch.no_grad():
        expected = files.converted[name](torch.from_numpy(X)).numpy()
    for path in (files.static[name], files.dynamic[name]):
        (found,) = get_runtime(name, threads=1).run(path, [X])
        # Between the quantizers OpenVINO may compute in bfloat16, 8 bits of mantissa; a code may flip.
        np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("name", RUNNING)
def test_inputs_are_given_in_order_or_by_name(difference: Path, name: str) -> None:
    runtime, a, b = get_runtime(name), np.full((2, 3), 5, np.float32), np.full((2, 1), 2, np.float32)
    for inputs in ([a, b], (torch.from_numpy(a), torch.from_numpy(b)), {"b": b, "a": a}):
        (found,) = runtime.run(difference, inputs)
        np.testing.assert_array_equal(found, np.full((2, 3), 3, np.float32))


@pytest.mark.parametrize("name", RUNNING)
def test_an_array_alone_is_the_one_input(files: RuntimeFiles, name: str) -> None:
    runtime = get_runtime(name)
    np.testing.assert_array_equal(runtime.run(files.static[name], X)[0], runtime.run(files.static[name], [X])[0])


@pytest.mark.parametrize("name", RUNNING)
def test_outputs_of_one_run_outlive_the_next(difference: Path, name: str) -> None:
    a, b = np.full((2, 3), 5, np.float32), np.full((2, 1), 2, np.float32)
    run_once = get_runtime(name).bind(difference, [a, b])
    (first,) = run_once()
    a[:] = 7
    run_once()
    np.testing.assert_array_equal(first, np.full((2, 3), 3, np.float32))


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([np.zeros((2, 3), np.float32)], r"got 1 inputs; the file wants 2: 'a', float32 \(2, .*\); 'b', float32"),
        ({"a": np.zeros((2, 3), np.float32), "c": 0}, "no b and unknown c; the file wants 2"),
        ([np.zeros((2, 3)), np.zeros((2, 1), np.float32)], r"the input 'a', float32 .*; got float64 \(2, 3\)"),
        ([np.zeros((3, 3), np.float32), np.zeros((2, 1), np.float32)], r"the input 'a', .*; got float32 \(3, 3\)"),
        ([np.zeros(2, np.float32), np.zeros((2, 1), np.float32)], r"the input 'a', .*; got float32 \(2\)"),
        ([torch.zeros(2, 3, requires_grad=True), np.zeros((2, 1), np.float32)], "'a' is no array: .*requires grad"),
    ],
    ids=["too few", "names", "dtype", "size", "rank", "waits for a gradient"],
)
def test_wrong_inputs_are_refused_with_what_the_file_wants(
    difference: Path, name: str, inputs: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        get_runtime(name).run(difference, inputs)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("onnxruntime", "INVALID_PROTOBUF"),
        ("openvino", "Unable to read the model"),
        ("tensorrt_rtx", "Failed to parse the ONNX model"),
    ],
)
def test_a_file_that_is_no_onnx_is_refused_in_the_runtimes_own_words(tmp_path: Path, name: str, words: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"\xff" * 32)
    with pytest.raises(RuntimeRefusedError, match=rf"^{name} does not run bad\.onnx: .*(\n.*)*{words}"):
        get_runtime(name).executed_ops(path)


@pytest.mark.parametrize("name", [*RUNNING, "tensorrt_rtx"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(RuntimeRefusedError, match=r"none\.onnx: there is no such file"):
        get_runtime(name).executed_ops(tmp_path / "none.onnx")


def test_a_failure_at_run_time_is_told_in_the_runtimes_own_words(tmp_path: Path) -> None:
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n",)),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 2)),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, (2,), [2, 2])
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "shape"], ["y"])], "g", ends[:1], ends[1:], [shape])
    path = tmp_path / "reshape.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    assert get_runtime("onnxruntime").run(path, np.zeros(4, np.float32))[0].shape == (2, 2)
    for name in RUNNING:
        with pytest.raises(RuntimeRefusedError, match=rf"{name} does not run reshape.onnx: .*(\n.*)*[Rr]eshape"):
            get_runtime(name).run(path, np.zeros(5, np.float32))


def test_tensorrt_rtx_says_that_it_neither_runs_nor_times_here(files: RuntimeFiles) -> None:
    runtime, path = get_runtime("tensorrt_rtx"), files.static["tensorrt_rtx"]
    for call in (runtime.run, runtime.latency):
        with pytest.raises(RuntimeUnavailableError, match=r"on an NVIDIA RTX GPU.*executed_ops compiles without one"):
            call(path, [X])


SIGNALLED = """
import faulthandler, gc, os, signal, sys, threading
import numpy as np
from fxq.runtimes import get_runtime

faulthandler.enable()  # gives handlers a stack of their own, which OpenVINO replaces
inputs = {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 1), np.float32)}
held = [get_runtime("openvino").bind(sys.path[1] + "/difference.onnx", inputs)]
held[0]()
thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))
thread.start()
thread.join()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no such signals")
def test_signals_arrive_after_another_thread_let_go_of_openvino(difference: Path) -> None:
    assert run_python(SIGNALLED, difference.parent).strip() == "handled"
