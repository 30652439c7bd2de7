"""The table of `python -m benchmarks latency`: files that are kept, ratios of wall and CPU time, what is held to."""

from pathlib import Path

import pytest
import torch
from torch import nn

import fxq
from benchmarks import latency, latency_files
from benchmarks.latency_files import write_file, write_files
from benchmarks.latency_rows import Row, table, verdicts, what_is_left
from fxq.runtimes import ExecutedOp, Latency, OpTensor

RATIOS = slice(4, 7)


def _small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.Conv2d(8, 4, 3, 4), nn.Flatten()).eval()


def _row(wall: dict[str, float], cpu: dict[str, float], rounds: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Row:
    times = {
        name: Latency(tuple(value * one for one in (rounds if name == "fxq" else (1.0, 1.0, 1.0))))
        for name, value in wall.items()
    }
    quantized = [name for name in wall if name != "float"]
    return Row(
        "m", "onnxruntime", times, {name: Latency((value,) * 3) for name, value in cpu.items()},
        dict.fromkeys(quantized, 20.0), dict.fromkeys(wall, "3: 0 float, 2 Q/DQ"),
    )  # fmt: skip


def _cells(row: Row) -> list[str]:
    return [cell.strip() for cell in table([row]).splitlines()[2].split("|")]


def test_float_and_fxq_are_timed_and_read_in_both_runtimes(tmp_path):
    for name in ("float.onnx", "fxq_onnxruntime.onnx", "fxq_openvino.onnx"):
        assert write_file(_small(), tmp_path / name) == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "float.onnx",
        "fxq_onnxruntime.onnx",
        "fxq_openvino.onnx",
    ]
    for runtime in latency.RUNTIMES:
        files = {"float": tmp_path / "float.onnx", "fxq": tmp_path / f"fxq_{runtime}.onnx"}
        left = {method: latency.left_of_file(path, runtime) for method, path in files.items()}
        row = latency.measure("small", runtime, files, left, rounds=3, threads=1)
        assert 25 < row.sqnr_db["fxq"] < 60  # 8 bits: neither garbage nor the float model itself
        assert set(row.times) == set(row.cpu_times) == {"float", "fxq"}
        assert row.left["fxq"].endswith("0 FakeQuantize" if runtime == "openvino" else "2 Q/DQ")


def test_a_file_that_a_runtime_refuses_or_crashes_on_is_said_and_not_timed(tmp_path, monkeypatch):
    for name in ("good.onnx", "bad.onnx"):
        (tmp_path / name).write_text("no file")

    def in_child(function, path, runtime, **options):
        if path.name == "bad.onnx":
            raise fxq.errors.RuntimeCrashedError("the process ended by signal SIGSEGV")
        return "3: 0 float"

    monkeypatch.setattr(latency, "in_child", in_child)
    left, notes = latency._left("m", "openvino", {"fxq": tmp_path / "good.onnx", "nncf": tmp_path / "bad.onnx"})
    assert left == {"fxq": "3: 0 float"}
    assert notes == ["m, nncf: the process ended by signal SIGSEGV"]


def test_a_file_that_is_there_is_not_written_again_and_one_that_fails_is_said(tmp_path, monkeypatch):
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("float.onnx", "fxq_onnxruntime.onnx", "quantize_static.onnx"):
        (folder / name).write_text("kept")
    monkeypatch.setattr(latency_files, "_in_child", lambda model, path, packages: f"failed: no {path.name}")
    files, notes = write_files("m", "onnxruntime", tmp_path, ("quantize_static", "nncf"), None)
    assert list(files) == ["float", "fxq", "quantize_static"]
    assert notes == ["m, nncf for onnxruntime: failed: no nncf.onnx"]


@pytest.mark.slow
def test_a_tuned_file_is_another_one(tmp_path, monkeypatch):
    monkeypatch.setattr(latency_files, "TUNE_BUDGET_S", 0.01)
    (tmp_path / "m").mkdir()
    monkeypatch.setattr(latency_files, "_in_child", lambda model, path, packages: write_file(_small(), path))
    for tuned in (False, True):
        files, notes = write_files("m", "onnxruntime", tmp_path, (), None, tuned)
        assert notes == []
        assert files["fxq"].name == ("tuned_onnxruntime.onnx" if tuned else "fxq_onnxruntime.onnx")
        row = latency.measure("m", "onnxruntime", files, dict.fromkeys(files, ""), rounds=3, threads=1)
        assert row.sqnr_db["fxq"] > 25  # it ran, and is quantized or float


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (ModuleNotFoundError("x", name="nncf"), "not installed: nncf"),
        (ValueError("an\noperator"), "failed: ValueError: an operator"),
    ],
    ids=["absent", "broken"],
)
def test_a_peer_that_fails_leaves_no_file(tmp_path, monkeypatch, error, note):
    def write(model: nn.Module, images: torch.Tensor, path: Path) -> None:
        path.write_text("half")
        raise error

    monkeypatch.setattr(latency_files, "WRITERS", {"nncf.xml": write})
    assert write_file(_small(), tmp_path / "nncf.xml") == note
    assert not list(tmp_path.iterdir())


def test_ratios_are_those_of_the_wall_and_of_the_cpu():
    cpu = {"float": 6.0, "fxq": 3.0, "quantize_static": 2.0, "nncf": 12.0}
    row = _row({"float": 4.0, "fxq": 2.0, "quantize_static": 1.0, "nncf": 8.0}, cpu)
    assert _cells(row)[3] == "2.00"
    assert _cells(row)[RATIOS] == ["2.00 (2.00)", "2.00 (1.50)", "0.25 (0.25)"]
    assert _cells(_row({"float": 4.0, "fxq": 2.0}, {"float": 4.0, "fxq": 2.0}))[RATIOS] == ["2.00 (2.00)", "", ""]


def test_what_is_slower_is_listed_and_a_tie_is_none():
    cpu = {"float": 2.0, "fxq": 1.0, "quantize_static": 0.99, "nncf": 0.9}
    said = "\n".join(verdicts([_row(cpu, cpu)]))
    assert "never slower than float: holds" in said
    assert "never slower than quantize_static: holds" in said
    assert "never slower than nncf: missed: m 1.11" in said
    assert "the better peer takes 0.90 times as long, 0.90 of CPU" in said
    assert "noisy" not in said
    assert "nncf" not in "\n".join(verdicts([_row({"float": 2.0, "fxq": 1.0}, {"float": 2.0, "fxq": 1.0})]))


def test_a_machine_too_noisy_to_tell_is_said():
    same = {"float": 1.0, "fxq": 1.0}
    row = _row(same, same, rounds=(1.0, 2.0, 3.0))
    assert _cells(row)[3] == "2.00 (noisy)"
    assert verdicts([row])[-1] == "The machine was too noisy for the times of the wall: m in onnxruntime"


def test_what_reads_and_writes_float_is_left_and_quantizers_that_run_by_themselves():
    def op(kind: str, reads: str, writes: str) -> ExecutedOp:
        return ExecutedOp("", kind, (OpTensor("a", reads, None),), (OpTensor("b", writes, None),))

    ops = [
        op("QuantizeLinear", "float32", "uint8"),
        op("QLinearConv", "uint8", "uint8"),
        op("Add", "float32", "float32"),
    ]
    assert what_is_left(ops, "onnxruntime") == "3: 1 float, 1 Q/DQ"
    ops = [op("FakeQuantize", "float32", "uint8"), op("Convolution", "bfloat16", "bfloat16")]
    assert what_is_left(ops, "openvino") == "2: 1 float, 1 FakeQuantize"


def test_the_folder_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        next(latency.run([]))
    assert "--folder" in capsys.readouterr().err
