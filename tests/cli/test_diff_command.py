"""``fxq quantize --save`` and ``fxq diff``."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from typer.testing import Result

import fxq as package

Fxq = Callable[..., Result]


def test_two_saved_models_are_compared_without_the_model(fxq: Fxq, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(8, 4)
    prepared = package.prepare(model, x)
    package.calibrate(prepared, [x], progress=False)
    package.save(prepared, tmp_path / "a.fxq")
    package.fit_ranges(prepared, "percentile", percentile=80.0)
    package.save(prepared, tmp_path / "b.fxq")
    same = fxq("diff", str(tmp_path / "a.fxq"), str(tmp_path / "a.fxq"))
    assert (same.exit_code, same.stdout.strip()) == (0, "no difference")
    result = fxq("diff", str(tmp_path / "a.fxq"), str(tmp_path / "b.fxq"), "--json")
    found = json.loads(result.stdout)
    assert [one["quantizer"] for one in found["ranges"]]
    assert not found["weights"]
    assert result.exit_code == 0
    assert "apart" in fxq("diff", str(tmp_path / "a.fxq"), str(tmp_path / "b.fxq")).stdout


def test_a_file_that_is_none_is_refused(fxq: Fxq, tmp_path: Path) -> None:
    (tmp_path / "text.fxq").write_text("no model")
    result = fxq("diff", str(tmp_path / "text.fxq"), str(tmp_path / "text.fxq"))
    assert result.exit_code == 1
    assert "text.fxq cannot be read" in result.stderr
