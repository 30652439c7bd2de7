"""The user's model is never changed, and prepare, calibrate and convert leave what they were given alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small import images, residual, snapshot
from torch import Tensor, nn

import fxq

TRT = fxq.recipe("tensorrt")


class Gate(nn.Module):
    """Looks at the data in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.fc(x)
        return x


class _Hooked:
    """A hook that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1


def user_model() -> nn.Module:
    """Return a model with all that a user may have put on one."""
    model = residual()
    model.conv2.register_forward_hook(_Hooked())
    model.conv1.register_forward_pre_hook(_Hooked())
    model.register_buffer("scratch", torch.ones(3), persistent=False)
    model.fc.weight.requires_grad_(False)
    model.bn.train()  # a module whose mode is not the model's
    model.notes = {"trained": "yesterday"}
    return model


@fxq.register_pass("break_numbers_for_the_tests")
class BreakNumbers(fxq.Pass):
    """Promises to keep the numbers, and does not."""

    stage = fxq.Stage.NORMALIZED

    def run(self, rw: fxq.Rewriter) -> None:
        for node in rw.nodes(lambda node: node.op == "call_module" and node.target == "fc"):
            rw.bypass(node, "for the test")


@fxq.register_pass("fail_for_the_tests")
class Fail(fxq.Pass):
    """Edits weights, then fails."""

    stage = fxq.Stage.NORMALIZED

    def run(self, rw: fxq.Rewriter) -> None:
        for parameter in rw.gm.parameters():
            parameter.data.zero_()
        raise KeyError("what a plugin may raise")


def last_in_normalize(name: str) -> fxq.Recipe:
    return TRT.with_pass(name, after="fold_batchnorm")


STAGES: dict[str, tuple[Callable[[nn.Module], Any], type[Exception] | None]] = {
    "prepared": (lambda model: fxq.prepare(model, images(2), verify=True), None),
    "prepared for training": (lambda model: fxq.prepare(model, images(2), qat=True), None),
    "tracing fails": (lambda model: fxq.prepare(nn.Sequential(model, Gate())), fxq.TraceError),
    "inputs do not fit": (lambda model: fxq.prepare(model, torch.randn(2, 3, 8, 8)), fxq.InputError),
    "a pass fails": (
        lambda model: fxq.prepare(model, images(2), last_in_normalize("fail_for_the_tests")),
        fxq.PassError,
    ),
    "a pass lies": (
        lambda model: fxq.prepare(model, images(2), last_in_normalize("break_numbers_for_the_tests"), verify=True),
        fxq.PassError,
    ),
    "calibration fails": (lambda model: fxq.calibrate(fxq.prepare(model), [images(2) / 0]), fxq.CalibrationError),
    "conversion fails": (lambda model: fxq.convert(fxq.prepare(model)), fxq.CalibrationError),
    "converted": (lambda model: fxq.quantize(model, [images(4)], example_inputs=images(2)), None),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the model is in training mode")
@pytest.mark.parametrize(("call", "error"), STAGES.values(), ids=STAGES.keys())
def test_the_users_model_stays_as_it_was(
    call: Callable[[nn.Module], Any], error: type[Exception] | None, recwarn: pytest.WarningsRecorder
) -> None:
    model = user_model()
    before = snapshot(model)
    if error is None:
        call(model)
    else:
        with pytest.raises(error):
            call(model)
    after = snapshot(model)
    assert {name: after[name] for name in before} == before


def test_training_a_prepared_model_leaves_the_users_model_alone() -> None:
    model = residual()
    before = snapshot(model)
    prepared = fxq.prepare(model, qat=True).train()
    fxq.calibrate(prepared, [images(8)])
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    prepared(images(8)).square().sum().backward()
    optimizer.step()
    assert snapshot(model) == before


def test_convert_and_export_leave_the_prepared_model_as_it_was(tmp_path: Path) -> None:
    prepared = fxq.prepare(residual(), images(2), qat=True).train()
    fxq.calibrate(prepared, [images(8)])
    before, shown, code = snapshot(prepared), str(prepared), prepared.code
    converted = fxq.convert(prepared)
    assert snapshot(prepared) == before
    frozen = snapshot(converted)
    fxq.export_onnx(converted, tmp_path / "model.onnx")
    assert snapshot(converted) == frozen
    assert (snapshot(prepared), str(prepared), prepared.code) == (before, shown, code)
