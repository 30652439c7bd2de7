"""``fxq.bench``: files in turn, and what can be told of the difference."""

import json
from pathlib import Path

import numpy as np
import pytest
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
    first, other = Latency((1.0, 2.0, 1.0, 2.0)), Latency((1.5, 1.6, 1.4, 1.7))
    ratios = other.ratio_quartiles(first)
    assert ratios == pytest.approx((0.8375, 1.125, 1.425), abs=0.02)
    assert not row(*other.rounds_ms, ratios=ratios).is_certain
    table = BenchReport((row(*first.rounds_ms), row(*other.rounds_ms, ratios=ratios))).table()
    assert "too noisy to tell" in table
    assert "(a busy machine)" in table
    # Both slowed alike: the machine was busy, and the difference is there all the same.
    slowed = Latency((2.0, 4.0, 2.0, 4.0))
    certain = row(*slowed.rounds_ms, ratios=slowed.ratio_quartiles(first))
    assert (certain.ratio, certain.is_certain, certain.is_noisy) == (2, True, True)
    assert "2.00 times as fast" in BenchReport((certain,)).table()
    slower = row(1.0, ratios=Latency((1.0,)).ratio_quartiles(Latency((2.0,))))
    assert "slower, 0.50 times as fast" in BenchReport((slower,)).table()


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
