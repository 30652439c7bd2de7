"""``fxq.bench``: files in turn, and what can be told of the difference."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.choosy_runtime import Choosy, NoZeros
from support.crashing_runtime import Crashing
from support.qdq_files import QdqFile, residual_block

import fxq
from fxq import BenchReport, BenchRow
from fxq.errors import InputError, OnnxFileError, RuntimeRefusedError, RuntimeUnavailableError
from fxq.runtimes import Latency


def two_layers(path: Path, repeats: int, shape: tuple[int | str, ...] = ("batch", 4, 8, 8)) -> Path:
    file = QdqFile(shape=shape)
    weight, y = file.store("w", np.full((4, 4, 3, 3), 0.01, np.float32)), "x"
    for index in range(repeats):
        y = file.conv(y, f"conv{index}", weight)
    return file.save(path, y)


def test_files_are_timed_in_each_runtime_and_the_slower_one_is_told(tmp_path: Path) -> None:
    short, long = two_layers(tmp_path / "short.onnx", 1), two_layers(tmp_path / "long.onnx", 60)
    report = fxq.bench(short, long, threads=1, rounds=15, warm_up=2)
    assert [(row.runtime, Path(row.path).name) for row in report] == [
        ("onnxruntime", "short.onnx"), ("onnxruntime", "long.onnx"),
        ("openvino", "short.onnx"), ("openvino", "long.onnx"),
    ]  # fmt: skip
    assert report.rows[0].ratio is None
    assert all(row.ratio > 2 and row.is_certain for row in report.rows[1::2])
    assert all(len(row.latency.rounds_ms) == 15 for row in report)
    assert report.inputs == ("inputs: x float32 1x4x8x8",)
    assert "times as fast" in report.table()
    assert json.loads(json.dumps(report.to_dict()))["rows"][1]["ratio"] == report.rows[1].ratio


def test_a_runtime_and_shapes_may_be_named(tmp_path: Path) -> None:
    report = fxq.bench(two_layers(tmp_path / "a.onnx", 1), runtimes=["onnxruntime"], shapes={"x": "5x4x8x8"}, rounds=1)
    assert [row.runtime for row in report] == ["onnxruntime"]
    assert report.inputs == ("inputs: x float32 5x4x8x8",)


def row(*rounds: float, ratios: tuple[float, float, float] | None = None) -> BenchRow:
    return BenchRow("onnxruntime", "model.onnx", Latency(rounds), ratios)


def test_a_difference_within_the_noise_is_no_difference() -> None:
    first, other = Latency((1.0, 2.0, 1.0, 2.0, 1.0)), Latency((1.5, 1.6, 1.4, 1.7, 1.5))
    ratios = other.ratio_quartiles(first)
    assert ratios == pytest.approx((0.85, 1.4, 1.5))
    assert not row(*other.rounds_ms, ratios=ratios).is_certain
    table = BenchReport((row(*first.rounds_ms), row(*other.rounds_ms, ratios=ratios))).table()
    assert "too noisy to tell" in table
    assert "(a busy machine)" in table
    # Both slowed alike: the machine was busy, and the difference is there all the same.
    slowed = Latency((2.0, 4.0, 2.0, 4.0, 2.0))
    certain = row(*slowed.rounds_ms, ratios=slowed.ratio_quartiles(first))
    assert (certain.ratio, certain.is_certain, certain.is_noisy) == (2, True, True)
    assert "2.00 times as fast (a busy machine)" in BenchReport((certain,)).table()
    slower = row(*[1.0] * 5, ratios=(0.5, 0.5, 0.5))
    table = BenchReport((slower,)).table()
    assert "slower, 0.50 times as fast" in table
    assert "busy machine" not in table
    assert "fewer than" not in table


def test_a_busy_machine_is_told_of_each_row_of_which_it_is_true() -> None:
    calm, busy = (1.0,) * 5, (1.0, 2.0, 1.0, 2.0, 1.0)
    rows = row(*calm), row(*busy, ratios=(0.9, 1.0, 1.1)), row(*busy, ratios=(2.0, 2.0, 2.0)), row(*calm)
    said = ["(a busy machine)" in line for line in BenchReport(rows).table().splitlines() if "model.onnx" in line]
    assert said == [False, True, True, False]


@pytest.mark.parametrize("rounds", [1, 4, 5])
def test_nothing_is_certain_of_few_rounds_and_the_report_says_why(rounds: int) -> None:
    few = row(*[2.0] * rounds, ratios=Latency((2.0,) * rounds).ratio_quartiles(Latency((1.0,) * rounds)))
    table = BenchReport((row(*[1.0] * rounds), few)).table()
    assert few.is_certain == few.to_dict()["is_certain"] == (rounds == 5)
    assert (f"too few rounds to tell: {rounds}" in table) == (rounds < 5)
    assert ("of fewer than 5 rounds a single odd one moves a quartile" in table) == (rounds < 5)
    assert ("2.00 times as fast" in table) == (rounds == 5)


def test_what_cannot_be_timed_is_one_clear_error(tmp_path: Path) -> None:
    wide = two_layers(tmp_path / "wide.onnx", 1, ("batch", 4, "height", 8))
    with pytest.raises(OnnxFileError, match=r"'x' of wide\.onnx has open sizes.*--shape x:1x4x1x8"):
        fxq.bench(wide)
    with pytest.raises(InputError, match="no file has an input 'y'; inputs: x"):
        fxq.bench(wide, shapes={"y": "1"})
    with pytest.raises(InputError, match="rounds must be at least 1"):
        fxq.bench(wide, rounds=0)
    with pytest.raises(InputError, match="needs the path"):
        fxq.bench()
    with pytest.raises(RuntimeUnavailableError, match="tensorrt_rtx compiles files and does not run them here"):
        fxq.bench(wide, shapes={"x": "1x4x8x8"}, runtimes=["tensorrt_rtx"])
    with pytest.raises(RuntimeUnavailableError, match="unknown runtime 'onnx'"):
        fxq.bench(wide, shapes={"x": "1x4x8x8"}, runtimes=["onnx"])
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 9)
    with pytest.raises(OnnxFileError, match=r"bad\.onnx is not an ONNX file"):
        fxq.bench(residual_block(tmp_path / "good.onnx"), tmp_path / "bad.onnx")


Use = Callable[[object], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Return a function that gives a runtime of somebody else the name "onnxruntime"."""
    return lambda runtime: monkeypatch.setattr("fxq.verification.benching.get_runtime", lambda name, **options: runtime)


def test_a_file_that_crashes_leaves_the_others_their_rows_in_turn(tmp_path: Path, use: Use) -> None:
    use(Choosy(deadly=("bad.onnx",)))
    files = [two_layers(tmp_path / f"{name}.onnx", repeats) for name, repeats in (("a", 1), ("bad", 1), ("b", 60))]
    report = fxq.bench(*files, runtimes=["onnxruntime"], threads=1, rounds=15)
    assert [Path(row.path).name for row in report] == ["a.onnx", "b.onnx"]
    assert report.notes == ("onnxruntime on bad.onnx: the process ended by signal SIGSEGV",)
    assert report.rows[1].ratio > 2
    assert report.rows[1].is_certain


def test_a_file_that_is_refused_leaves_the_others_their_rows(tmp_path: Path) -> None:
    file = QdqFile()
    file.save(tmp_path / "bad.onnx", file.op("NoSuchOperator", "x", name="unknown"))
    good = two_layers(tmp_path / "good.onnx", 1)
    report = fxq.bench(good, tmp_path / "bad.onnx", rounds=1)
    assert [(row.runtime, Path(row.path).name) for row in report] == [
        ("onnxruntime", "good.onnx"), ("openvino", "good.onnx"),
    ]  # fmt: skip
    assert len(report.notes) == 2
    assert all("does not run bad.onnx" in note for note in report.notes)


def test_nothing_is_compared_with_a_first_file_that_does_not_run(tmp_path: Path, use: Use) -> None:
    use(Choosy(deadly=("bad.onnx",)))
    files = [two_layers(tmp_path / f"{name}.onnx", 1) for name in ("bad", "a", "b")]
    report = fxq.bench(*files, runtimes=["onnxruntime"], rounds=1)
    assert [(Path(row.path).name, row.ratio) for row in report] == [("a.onnx", None), ("b.onnx", None)]
    assert "SIGSEGV" in report.notes[0]
    assert report.notes[1] == "onnxruntime: nothing is compared with bad.onnx, which does not run"


def test_files_that_run_by_themselves_alone_are_timed_so_and_not_compared(tmp_path: Path, use: Use) -> None:
    use(Choosy(survives_company=False))
    files = [two_layers(tmp_path / f"{name}.onnx", 1) for name in "ab"]
    report = fxq.bench(*files, runtimes=["onnxruntime"], rounds=7)
    assert [(Path(row.path).name, row.ratio) for row in report] == [("a.onnx", None), ("b.onnx", None)]
    (note,) = report.notes
    assert note.startswith("onnxruntime on a.onnx, b.onnx: the process ended by signal SIGSEGV")
    assert note.endswith("each of them runs by itself, and they were timed so, and are not compared")


def copying(path: Path, dtype: str) -> Path:
    ends = [helper.make_tensor_value_info(name, getattr(TensorProto, dtype), (2, 8)) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16", "BFLOAT16"])
def test_inputs_of_every_floating_type_are_random(tmp_path: Path, use: Use, dtype: str) -> None:
    use(NoZeros())
    report = fxq.bench(copying(tmp_path / "m.onnx", dtype), runtimes=["onnxruntime"], rounds=1)
    assert len(report) == 1


def test_a_file_whose_inputs_the_runtime_does_not_take_leaves_the_others_their_rows(tmp_path: Path, use: Use) -> None:
    use(NoZeros())
    files = [copying(tmp_path / f"{dtype}.onnx", dtype) for dtype in ("FLOAT", "INT64")]
    report = fxq.bench(*files, runtimes=["onnxruntime"], rounds=1)
    assert [Path(row.path).name for row in report] == ["FLOAT.onnx"]
    assert report.notes == ("onnxruntime on INT64.onnx: the file wants no zeros",)


def test_a_runtime_that_does_not_run_the_files_is_a_note_and_all_of_them_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = fxq.runtimes.get_runtime
    crashing = {"openvino": Crashing()}
    monkeypatch.setattr(
        "fxq.verification.benching.get_runtime", lambda name, **options: crashing.get(name) or get(name, **options)
    )
    path = two_layers(tmp_path / "a.onnx", 1)
    report = fxq.bench(path, rounds=1)
    assert [found.runtime for found in report] == ["onnxruntime"]
    assert "openvino on a.onnx: the process ended by signal SIGSEGV" in report.notes[0]
    with pytest.raises(RuntimeRefusedError, match=r"openvino on a\.onnx: the process ended"):
        fxq.bench(path, runtimes=["openvino"], rounds=1)
