"""What passes are judged by: outputs with values that are not finite, large ones, few samples; and what it takes."""

import math
from collections.abc import Callable

import pytest
import torch
from support.small import images, residual
from torch import Tensor, nn

import fxq

FAST = fxq.recipe("tensorrt").with_accuracy("fast")
DATA = images(64)


class Masked(nn.Module):
    """A residual network with more outputs; ``kind`` says how they are not finite."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = residual(), kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if self.kind == "a score":
            return torch.cat([y, torch.full_like(y[:, :1], -math.inf)], 1)
        if self.kind == "one sample":
            return y.masked_fill(x.flatten(1).amax(1, keepdim=True) > DATA.flatten(1).amax(1).median(), math.inf)
        if self.kind == "undefined":
            return torch.cat([y, y[:, :1] * math.nan], 1)
        return y * math.nan if self.kind == "all" else y


def calibrated(kind: str) -> fxq.CalibrationReport:
    prepared = fxq.prepare(Masked(kind).eval(), DATA[:8], FAST)
    return fxq.calibrate(prepared, DATA.split(8), progress=False)


@pytest.mark.parametrize("kind", ["a score", "undefined"])
def test_what_is_not_finite_in_float_does_not_count(kind: str) -> None:
    found, wanted = calibrated(kind), calibrated("none")
    assert [(step.kept, step.changed) for step in found.steps] == [(step.kept, step.changed) for step in wanted.steps]
    assert any(step.changed and step.sqnr_after_db for step in found.steps)
    for step, other in zip(found.steps, wanted.steps, strict=True):
        assert step.sqnr_after_db == pytest.approx(other.sqnr_after_db)


def test_samples_that_have_no_finite_value_leave_the_others_to_judge_by() -> None:
    figures = [step.sqnr_after_db for step in calibrated("one sample").steps if step.sqnr_after_db is not None]
    assert figures
    assert all(math.isfinite(one) for one in figures)


class OfSquares(nn.Module):
    """The root of what is 0 or a little more, which rounding makes less than 0, and its logarithm."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(8, 8), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


@pytest.mark.parametrize("function", [torch.sqrt, torch.log], ids=["NaN", "infinity"])
def test_what_is_not_finite_in_the_quantized_model_alone_is_all_wrong(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = OfSquares(function).eval()
    x = torch.rand(7, 8).repeat(40, 1)  # each is among the samples held out, too
    with torch.no_grad():  # all positive in float, the smallest by next to nothing
        model.linear.bias -= model.linear(x).amin(0) - 1e-7
    prepared = fxq.prepare(model, x[:8], FAST)
    report = fxq.calibrate(prepared, x.split(8), progress=False)
    with torch.no_grad():
        assert not bool(torch.isfinite(prepared(x)).all())
    assert next(step.sqnr_before_db for step in report.steps if step.sqnr_before_db is not None) == -math.inf


def test_where_nothing_is_finite_it_is_said() -> None:
    report = calibrated("all")
    assert report.notes[0].startswith("the model returns no finite floating-point value: ")
    assert all(step.sqnr_after_db is None for step in report.steps)


def test_the_report_says_what_measuring_took() -> None:
    report = calibrated("none")
    assert report.measuring_seconds > 0
    (line,) = (line for line in str(report).splitlines() if "measuring" in line)
    assert f"{report.measuring_seconds:.2f}" in line


@pytest.mark.parametrize(("count", "is_few"), [(24, True), (32, False)])
def test_few_samples_are_said_to_be_too_few(count: int, is_few: bool) -> None:
    prepared = fxq.prepare(residual(), DATA[:8], FAST)
    report = fxq.calibrate(prepared, DATA[:count].split(8), progress=False)
    assert (": too few to tell a gain from chance" in report.notes[0]) is is_few
