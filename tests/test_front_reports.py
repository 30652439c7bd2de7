"""What people read: explanations and reports that fit, percentages, rules and targets that say what they mean."""

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        y = self.fc(x if mask is None else x * mask)
        return y if scale is None else y * scale


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def prepared() -> torch.fx.GraphModule:
    """A calibrated model."""
    model = fxq.prepare(Net().eval(), X, "tensorrt")
    fxq.calibrate(model, [X], progress=False)
    return model


def test_an_explanation_fits_the_terminal_and_loses_nothing(
    prepared: torch.fx.GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = str(fxq.explain(prepared))
    assert max(map(len, elsewhere.splitlines())) > 120  # a file has no width: the same on every machine
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    text = str(fxq.explain(prepared))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for tensor in (tensor for node in fxq.explain(prepared).nodes for tensor in node.quantized):
        assert tensor.range in " ".join(text.split())


def test_a_calibration_report_counts_its_data_and_has_no_empty_columns(prepared: torch.fx.GraphModule) -> None:
    assert str(fxq.calibrate(prepared, [X], progress=False)).startswith("calibration: 4 samples in 1 batch\n")
    report = fxq.calibrate(prepared, list(X.split(1)), progress=False)
    assert (report.batches, report.samples) == (4, 4)
    assert "4 samples in 4 batches" in str(report)
    assert "SQNR" not in str(report)
    by_hand = fxq.calibrate(prepared, [X], forward=lambda model, batch: model(batch), progress=False)
    assert str(by_hand).startswith("calibration: 1 batch\n")  # it may have called the model with anything


def test_measured_steps_keep_their_columns() -> None:
    recipe = fxq.recipe("tensorrt").with_pass("correct_bias")
    model = fxq.prepare(Net().eval(), X, recipe)
    assert "SQNR before" in str(fxq.calibrate(model, [X, X, X], progress=False))


def test_a_pass_without_anything_to_do_is_one_line_that_says_so() -> None:
    torch.manual_seed(0)
    recipe = fxq.recipe("tensorrt").with_pass("equalize_channels").with_pass("correct_bias")
    model = fxq.prepare(torch.nn.Sequential(torch.nn.Linear(4, 4)).eval(), torch.ones(2, 4), recipe)
    data = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    report = fxq.calibrate(model, data.split(8), progress=False)
    (line,) = (line for line in str(report).splitlines() if "equalize_channels" in line)
    assert "nothing to do" in line
    assert [step.name for step in report.steps if not step.changed] == ["equalize_channels"]


@pytest.mark.parametrize("percentile", [0.9999, 1, 0.5])
def test_a_percentile_is_a_percentage(prepared: torch.fx.GraphModule, percentile: float) -> None:
    with pytest.raises(fxq.CalibrationError, match=rf"it is a percentage, so write percentile={100 * percentile:g}"):
        fxq.fit_ranges(prepared, method="percentile", percentile=percentile)
    with pytest.raises(fxq.CalibrationError, match="it is a percentage"):
        fxq.calibrate_weights(prepared, method="percentile", percentile=percentile)
    fxq.fit_ranges(prepared, method="percentile", percentile=99.99)


def test_the_figures_of_an_export_come_with_their_scale(prepared: torch.fx.GraphModule, tmp_path: Path) -> None:
    report = fxq.export_onnx(fxq.convert(prepared), tmp_path / "x.onnx")
    told = str(report)
    assert f"1 LSB of output is {report.parity[0].step:.3g}; 16 at most, 1 on average and, in the file as it is" in told
    assert "written, 0.01% beyond 1 count as rounding" in told


def test_a_rule_that_says_nothing_is_refused() -> None:
    with pytest.raises(fxq.RecipeError, match=r"says nothing about .*: add float = true to leave it in float"):
        fxq.Recipe.from_toml('target = "tensorrt"\n[[rules]]\nmatch = "fc"\n')


def test_a_rule_for_the_targets_defaults_is_written_and_read() -> None:
    recipe = fxq.recipe("tensorrt").with_rules(("fc", fxq.QConfig()), ("conv", None))
    assert "float = false" in recipe.to_toml()
    assert fxq.Recipe.from_toml(recipe.to_toml()) == recipe


def test_an_edited_target_needs_a_name_of_its_own(tmp_path: Path) -> None:
    text = fxq.get_target("tensorrt").to_toml()
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert fxq.Recipe(target=str(path)).resolved_target == fxq.get_target("tensorrt")  # nothing was changed
    target = fxq.get_target("tensorrt")
    path.write_text(dataclasses.replace(target, ops=target.ops[:1]).to_toml())
    (tmp_path / "recipe.toml").write_text('target = "mine.toml"\n')
    for read in (lambda: fxq.Recipe(target=str(path)), lambda: fxq.recipe(tmp_path / "recipe.toml")):
        with pytest.raises(fxq.FxqError, match=r"the name 'tensorrt' is that of another target.*my_tensorrt"):
            read()
    path.write_text(path.read_text().replace('name = "tensorrt"', 'name = "my_tensorrt"', 1))
    assert fxq.recipe(tmp_path / "recipe.toml").resolved_target.name == "my_tensorrt"


@pytest.mark.parametrize(
    ("model", "batches", "inputs"),
    [
        (Net(), X, 1),
        (Net(), {"x": X}, 1),
        (Net(), [{"x": X}], 1),
        (Net(), iter([{"x": X}, {"x": X}]), 1),
        (Masked(), [{"x": ROWS}], 1),
        (Masked(), [{"mask": torch.ones(4, 8), "x": ROWS}], 2),
        (Masked(), [{"x": ROWS, "scale": torch.ones(4, 4)}], 2),
    ],
    ids=["tensor", "dict", "dicts", "generator of dicts", "first", "two, in another order", "one left out"],
)
def test_what_batches_tell_of_the_inputs_is_enough_to_export(
    model: nn.Module, batches: Iterable[Any], inputs: int, tmp_path: Path
) -> None:
    converted = fxq.quantize(model.eval(), batches, progress=False)
    fxq.export_onnx(converted, tmp_path / "x.onnx")
    import onnx

    assert len(onnx.load(tmp_path / "x.onnx").graph.input) == inputs
