"""fxq.diff: what tells two models apart, and how far."""

import math
from pathlib import Path

import pytest
import torch
from saved_models import calibrated, images, mobile

import fxq


def test_the_same_model_has_no_difference(tmp_path: Path) -> None:
    prepared = calibrated("mobile", "best")
    fxq.save(prepared, tmp_path / "model.fxq")
    found = fxq.diff(prepared, tmp_path / "model.fxq")
    assert not found
    assert str(found) == "no difference"


def test_ranges_say_how_far_they_moved() -> None:
    first, second = calibrated("mobile"), calibrated("mobile")
    second.get_submodule("up_input_quantizer").amax *= 0.75
    (only,) = fxq.diff(first, second).ranges
    assert only.quantizer == "up_input_quantizer"
    assert only.apart == pytest.approx(0.125)  # each end by an eighth of the whole range
    second.get_submodule("down_input_quantizer").reset_amax()
    found = fxq.diff(first, second).ranges
    assert (found[0].quantizer, found[0].second, found[0].apart) == ("down_input_quantizer", "", None)


def test_weights_say_how_far_they_moved() -> None:
    first, second = calibrated("mobile"), calibrated("mobile")
    with torch.no_grad():
        second.fc.weight.mul_(1.1)
        second.fc.bias.add_(0.25)
    by_path = {one.path: one for one in fxq.diff(first, second).weights}
    assert by_path.keys() == {"fc.weight", "fc.bias"}
    assert by_path["fc.weight"].sqnr_db == pytest.approx(20, abs=1e-3)
    assert by_path["fc.bias"].max_abs == pytest.approx(0.25)


def test_recipes_plans_and_graphs_are_told_apart() -> None:
    plain = fxq.prepare(mobile(), images(2))
    other = fxq.prepare(mobile(), images(2), fxq.recipe("tensorrt").with_rules(("fc", None)), qat=True)
    found = fxq.diff(plain, other)
    assert any("float = true" in line for line in found.recipe)
    assert [(one.what, one.first, one.second) for one in found.settings] == [("qat", "False", "True")]
    assert ("fc weight", "int8 per channel (axis 0)", "") in [(one.what, one.first, one.second) for one in found.plans]
    assert any(line.startswith("- fc_input_quantizer = call_module") for line in found.graph)
    assert "fc weight" in found.table()


def test_an_accuracy_pass_shows_in_weights_and_switches_in_quantizers() -> None:
    first, second = calibrated("mobile"), calibrated("mobile", "fast")
    second.fc.weight_quantizer.disable_quant()
    found = fxq.diff(first, second)
    assert any(one.path == "depthwise.weight" for one in found.weights)
    assert all(one.sqnr_db is None or not math.isnan(one.sqnr_db) for one in found.weights)
    (only,) = (one for one in found.quantizers if one.what.startswith("fc."))
    assert (only.first, only.second) == (
        "int8 per channel (axis 0), quant, MaxCalibrator",
        "int8 per channel (axis 0), , MaxCalibrator",
    )


def test_what_is_no_model_of_fxq_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fxq.SavedModelError, match="there is no file"):
        fxq.diff(tmp_path / "none.fxq", tmp_path / "none.fxq")
