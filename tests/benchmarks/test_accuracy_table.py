"""The table of `python -m benchmarks accuracy`, on a lab made here."""

import sys
from pathlib import Path

import pytest
import torch

import fxq
from benchmarks import accuracy, accuracy_peers
from benchmarks.accuracy_peers import peer_row
from benchmarks.accuracy_rows import Row, ahead_of_peers, file_as_module, model_table, never_worse, summary
from benchmarks.lab import Lab, load

REAL_MODELS = """
import torch
from torch import nn

PACKAGES = {"small": ("nothing",), "absent": ("some-weights (--no-deps)", "tokenizers")}

def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    known, asked = torch.randn(32, 3, 8, 8), torch.randn(20, 3, 8, 8)
    def metric(outputs, reference):
        a, b = torch.cat(outputs).argmax(1), torch.cat(reference).argmax(1)
        return {"agreement": float((a == b).float().mean()), "float_is_left_out": 1.0}
    return model, [(b,) for b in known.split(8)], [(b,) for b in asked.split(8)], metric

def absent():
    import a_package_that_is_not_there

def sqnr(outputs, reference):
    a, b = torch.cat(reference), torch.cat(outputs)
    return float(20 * torch.log10(a.norm() / (a - b).norm()))

CASES = {"small": small, "absent": absent}
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "real_models.py").write_text(REAL_MODELS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "real_models", raising=False)
    yield tmp_path
    sys.modules.pop("real_models", None)


def test_models_levels_and_what_is_missing_are_rows_of_a_file(lab, tmp_path):
    out = tmp_path / "table.md"
    options = [
        "--lab",
        str(lab),
        "--models",
        "small",
        "absent",
        "--targets",
        "onnxruntime",
        "--levels",
        "plain",
        "fast",
    ]
    printed = list(accuracy.run([*options, "--peers", "--out", str(out)]))
    text = out.read_text()
    assert "\n\n".join(part.strip("\n") for part in printed) + "\n" == text
    rows = {line.split("|")[1].strip(): line for line in text.split("**absent**")[0].splitlines() if "|" in line}
    assert list(rows)[2:] == ["float", "fxq onnxruntime, plain", "fxq onnxruntime, fast"]
    module_db, file_db, agreement = (float(cell) for cell in rows["fxq onnxruntime, plain"].split("|")[2:5])
    assert 25 < module_db < 60  # 8 bits: neither garbage nor the float model itself
    assert abs(module_db - file_db) < 0.5
    assert 0.9 <= agreement <= 1
    assert "float_is_left_out" not in text
    assert "cannot be loaded; it needs some-weights (--no-deps) tokenizers (ModuleNotFoundError" in text
    assert "Never worse than plain by more than 0.3 dB: holds in all 2 comparisons." in text


def test_a_folder_without_the_models_is_said_with_the_option(tmp_path):
    with pytest.raises(SystemExit, match=r"no real_models.py in .*nowhere.*say with --lab where it is"):
        list(accuracy.run(["--lab", str(tmp_path / "nowhere")]))


def test_an_unknown_model_is_said_before_anything_is_measured(lab):
    with pytest.raises(SystemExit, match="no model 'smal'; it has mobilenet_v2, small, absent"):
        list(accuracy.run(["--lab", str(lab), "--models", "smal"]))


def test_a_file_that_cannot_be_written_fails_before_anything_is_measured(lab):
    with pytest.raises(FileNotFoundError):
        next(accuracy.run(["--lab", str(lab), "--out", str(lab / "no folder" / "table.md")]))


def test_a_model_that_cannot_be_exported_keeps_what_was_measured_of_the_module(lab, monkeypatch):
    def refuse(*args, **options):
        raise fxq.errors.ExportError("no | such operator")

    monkeypatch.setattr(fxq, "export_onnx", refuse)
    row = accuracy.measure(load(Lab(lab), "small"), "onnxruntime", "plain")
    assert row.sqnr_db is not None
    assert row.sqnr_db > 25  # as in the test of the table
    assert row.file_db is None
    assert "failed: ExportError: no \\| such operator" in model_table([row])


def test_a_seed_takes_some_of_the_calibration_data_and_all_of_the_evaluation(lab):
    whole, part = load(Lab(lab), "small"), load(Lab(lab, seed=1), "small")
    assert [len(batch[0]) for batch in part.calibration] == [8, 8, 8]
    known = {tuple(row.flatten().tolist()) for batch in whole.calibration for row in batch[0]}
    assert all(tuple(row.flatten().tolist()) in known for batch in part.calibration for row in batch[0])
    torch.testing.assert_close(part.evaluation[0][0], whole.evaluation[0][0])
    other = load(Lab(lab, seed=2), "small")
    assert not torch.equal(other.calibration[0][0], part.calibration[0][0])


def test_a_peer_that_is_not_installed_or_fails_is_a_row(lab, monkeypatch):
    def absent(case, folder):
        import a_package_that_is_not_there

        return a_package_that_is_not_there, 0.0

    def broken(case, folder):
        raise ValueError("an operator\nit does not know")

    monkeypatch.setitem(accuracy_peers.PEERS, "absent", absent)
    monkeypatch.setitem(accuracy_peers.PEERS, "broken", broken)
    case = load(Lab(lab), "small")
    assert peer_row("absent", case).note == "not installed: a_package_that_is_not_there"
    assert peer_row("broken", case).note == "failed: ValueError: an operator it does not know"


def test_a_peer_gets_the_data_and_is_measured_like_fxq(lab, monkeypatch):
    monkeypatch.setitem(accuracy_peers.PEERS, "half", lambda case, folder: (lambda x: 0.5 * case.model(x), 2.0))
    row = peer_row("half", load(Lab(lab), "small"))
    assert row.sqnr_db == pytest.approx(6.02, abs=0.01)  # 20 log10(1 / 0.5)
    assert (row.figures, row.seconds) == ({"agreement": 1.0}, 2.0)


def _row(level: str | None, sqnr_db: float | None, file_db: float | None = None, **rest) -> Row:
    target = None if level is None else "t"
    return Row("m", level or "peer", target, level, sqnr_db, file_db, **rest)


def test_what_is_worse_than_plain_is_listed_the_file_too():
    plain = _row("plain", 20.0, 20.0)
    assert "holds in all 2" in never_worse([plain, _row("fast", 19.8, 19.8)])
    assert "- m, fast: 19.6 dB, plain 20.0 dB" in never_worse([plain, _row("fast", 19.6, 19.8)])
    assert "- m, fast, file: 10.0 dB, plain 20.0 dB" in never_worse([plain, _row("fast", 21.0, 10.0)])
    assert "- m, fast: nan dB" in never_worse([plain, _row("fast", float("nan"), 20.0)])
    assert "broken in 2 of 2" in never_worse([plain, _row("fast", None)])  # it failed
    assert never_worse([_row("fast", 21.0)]).endswith("nothing to compare.")


def test_a_file_that_computes_something_else_is_listed():
    assert "holds in all 1" in file_as_module([_row("fast", 20.0, 20.2), _row(None, 20.0)])
    assert "- m, fast: file 12.0 dB, module 20.0 dB" in file_as_module([_row("fast", 20.0, 12.0)])


def test_best_behind_the_best_peer_is_listed():
    peers = [_row(None, 12.0), _row(None, None, note="not installed: x"), _row(None, 15.0), _row(None, -1.0)]
    assert "holds in all 1" in ahead_of_peers([_row("best", 14.8), _row("fast", 3.0), *peers])
    assert "- m, best: 14.0 dB, peer 15.0 dB" in ahead_of_peers([_row("best", 14.0), *peers])
    assert ahead_of_peers([_row("best", 14.0)]).endswith("nothing to compare.")
    assert "holds in all 1" in ahead_of_peers([_row("best", 1.0), _row(None, -1.0)])


def test_tables_are_markdown_with_all_figures_and_the_first_over_all():
    rows = [_row("fast", 20.0, 19.96, figures={"top1": 0.5, "cents": 2.0}, seconds=1.0), _row(None, None, note="no")]
    table = model_table(rows)
    assert table.splitlines()[0] == "**m**"
    assert [cell.strip() for cell in table.splitlines()[4].split("|")[1:-1]] == [
        "fast", "20.0", "20.0", "0.5000", "2.0000", "1.0", "",
    ]  # fmt: skip
    assert len({len(line) for line in table.splitlines()[2:]}) == 1
    assert [cell.strip() for cell in summary(rows).splitlines()[4].split("|")[1:-1]] == ["fast", "20.0 / 0.500"]
    assert [cell.strip() for cell in summary(rows).splitlines()[5].split("|")[1:-1]] == ["peer", "- / -"]
