"""A weight that a pass changes moves what is computed behind it, and the ranges there follow."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.small import images, residual
from torch.fx import GraphModule

import fxq
from fxq.graph import activation_quantizers
from fxq.state import find_state

DATA = images(32)


@fxq.register_pass("test_multiply_conv2")
@dataclass(frozen=True)
class MultiplyConv2(fxq.Pass):
    """Multiplies a layer in the middle of the model."""

    stage = fxq.Stage.CALIBRATED
    tolerance = fxq.ANY
    by: float = 4.0

    def run(self, rw: fxq.Rewriter) -> None:
        for name, set_tensor in (("weight", rw.set_weight), ("bias", rw.set_bias)):
            set_tensor("conv2", getattr(rw.gm.get_submodule("conv2"), name).detach() * self.by, "multiplied")


@fxq.register_pass("test_multiply_conv2_and_judge")
class MultiplyAndJudge(MultiplyConv2):
    """The same, measured, and so undone."""

    improves = True


@fxq.register_pass("test_multiply_conv2_in_range")
class MultiplyInRange(MultiplyConv2):
    """The same, which claims that activations stay where they were."""

    keeps_ranges: ClassVar[bool] = True


def calibrated(name: str = "", by: float = 4.0) -> GraphModule:
    recipe = fxq.recipe("tensorrt")
    if name:
        recipe = recipe.with_pass(name, by=by)
    gm = fxq.prepare(residual(), DATA[:2], recipe)
    fxq.calibrate(gm, DATA.split(8))
    return gm


def ranges(gm: GraphModule) -> dict[str, float]:
    return {path: float(quantizer.amax) for path, quantizer in activation_quantizers(gm).items()}


def test_ranges_behind_a_changed_weight_are_those_of_a_model_that_had_it_from_the_start() -> None:
    found, plain = ranges(calibrated("test_multiply_conv2")), ranges(calibrated())
    model = residual()
    with torch.no_grad():
        model.conv2.weight *= 4  # type: ignore[operator]
        model.conv2.bias *= 4  # type: ignore[operator]
    gm = fxq.prepare(model, DATA[:2], "tensorrt")
    fxq.calibrate(gm, DATA.split(8))
    assert found == pytest.approx(ranges(gm))
    moved = {path for path in plain if found[path] != pytest.approx(plain[path])}
    assert moved
    assert "conv1_input_quantizer" not in moved
    assert "conv2_input_quantizer" not in moved


def test_the_record_names_the_pass_that_moved_ranges() -> None:
    state = find_state(calibrated("test_multiply_conv2"))
    assert state is not None
    (entry,) = [entry for entry in state.record.entries if "fitted again" in entry.text]
    assert entry.pass_name == "test_multiply_conv2"
    assert "fc_input_quantizer" in entry.text


def test_a_pass_that_keeps_ranges_keeps_them() -> None:
    assert ranges(calibrated("test_multiply_conv2_in_range")) == ranges(calibrated())


def test_what_was_observed_before_an_undone_pass_is_there_again() -> None:
    gm, plain = calibrated("test_multiply_conv2_and_judge"), calibrated("test_multiply_conv2_and_judge", by=1.0)
    assert ranges(gm) == ranges(plain)
    for one in (gm, plain):
        fxq.fit_ranges(one, method="percentile", percentile=99.0)
    assert ranges(gm) == ranges(plain)
