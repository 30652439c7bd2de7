"""What fxq refuses, and that it says what to do. Bad batches have a file of their own."""

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small import Residual, images, residual
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq

TRT = fxq.recipe("tensorrt")
BITS3 = fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=3, axis=0))
AFFINE = fxq.QConfig(activation=fxq.QuantDescriptor(unsigned=True, symmetric=False))


class Gate(nn.Module):
    """Looks at the data in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.fc(x)
        return x


class Gated(nn.Module):
    """A Gate, deeper down."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x)


class NotCopyable(Residual):
    """Holds what Python cannot copy."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@pytest.fixture(scope="module")
def shared_prepared() -> GraphModule:
    """A prepared model that no test changes for good."""
    return fxq.prepare(residual(), images(2))


@pytest.fixture(scope="module")
def converted() -> GraphModule:
    return fxq.quantize(residual(), [images(4)], example_inputs=images(2))


REFUSED_BY_PREPARE = {
    "no module": (lambda: fxq.prepare(torch.relu), fxq.InputError, ["torch.nn.Module"]),
    "a class": (lambda: fxq.prepare(Residual), fxq.InputError, ["class Residual", "make an instance"]),
    "untraceable": (
        lambda: fxq.prepare(Gated().eval(), torch.randn(2, 4)),
        fxq.TraceError,
        ["module 'gate' (Gate)", "test_bad_input.py:", "if x.sum() > 0", 'leaf_modules=("gate",)', "left in float"],
    ),
    "untraceable, no shapes": (
        lambda: fxq.prepare(Gated().eval()),
        fxq.TraceError,
        ["module 'gate' (Gate)", "test_bad_input.py:", "pass example_inputs", 'leaf_modules=("gate",)'],
    ),
    "inputs of a wrong shape": (
        lambda: fxq.prepare(residual(), torch.randn(2, 3, 8, 8)),
        fxq.InputError,
        ["module 'conv1' (Conv2d)", "float32[2, 3, 8, 8]", "model(*example_inputs) runs"],
    ),
    "too many inputs": (
        lambda: fxq.prepare(residual(), (images(2), images(2))),
        fxq.InputError,
        ["forward takes (x", "2 example"],
    ),
    "no inputs": (lambda: fxq.prepare(residual(), ()), fxq.InputError, ["'x'", "one for each parameter"]),
    "inputs in a set": (lambda: fxq.prepare(residual(), {3}), fxq.InputError, ["tuple", "got set"]),
    "verify without inputs": (lambda: fxq.prepare(residual(), verify=True), fxq.PassError, ["example_inputs"]),
    "unknown recipe": (lambda: fxq.prepare(residual(), recipe="tensort"), fxq.RecipeError, ["'tensort'", "tensorrt"]),
    "recipe of a wrong type": (lambda: fxq.prepare(residual(), recipe=3), fxq.RecipeError, ["got int", ".toml"]),
    "unknown pass": (
        lambda: fxq.prepare(residual(), recipe=TRT.replace(passes=("fold_bachnorm",))),
        fxq.RecipeError,
        ["'fold_bachnorm'", "did you mean 'fold_batchnorm'?"],
    ),
    "pass that is no name": (lambda: TRT.replace(passes=(3,)), fxq.RecipeError, ["PassSpec", "got 3"]),
    "unknown target": (lambda: fxq.Recipe("mine", "tensorflow"), fxq.TargetError, ["'tensorflow'", "onnxruntime"]),
    "glob without match": (
        lambda: fxq.prepare(residual(), recipe=TRT.with_rules(("cnv*", None))),
        fxq.RecipeError,
        ["'cnv*'", "did you mean 'conv"],
    ),
    "leaf without match": (
        lambda: fxq.prepare(residual(), recipe=TRT.replace(leaf_modules=("cnv1",))),
        fxq.RecipeError,
        ["'cnv1'", "did you mean", "'conv1'"],
    ),
    "too few bits": (lambda: fxq.QuantDescriptor(num_bits=1), fxq.DescriptorError, ["from 2 to 16", "got 1"]),
    "too many bits": (lambda: fxq.QuantDescriptor(num_bits=17), fxq.DescriptorError, ["from 2 to 16", "got 17"]),
    "weights the target lacks": (
        lambda: fxq.prepare(residual(), recipe=TRT.with_rules(("fc", BITS3))),
        fxq.TargetError,
        ["'fc'", "rule ('fc', QConfig)", "'tensorrt' has no 3-bit weights", "4 or 8", "rule with None"],
    ),
    "activations the target lacks": (
        lambda: fxq.prepare(residual(), recipe=TRT.with_rules(("conv2", AFFINE))),
        fxq.TargetError,
        ["'conv2'", "rule ('conv2', QConfig)", "symmetric activations only", "symmetric=True"],
    ),
    "defaults the target lacks": (
        lambda: fxq.prepare(residual(), recipe=TRT.replace(default=AFFINE)),
        fxq.TargetError,
        ["'conv1'", "default of the recipe", "symmetric=True"],
    ),
    "prepared before": (
        lambda: fxq.prepare(fxq.prepare(residual())),
        fxq.StageError,
        ["already prepared", "prepare the original model"],
    ),
    "prepared part": (
        lambda: fxq.prepare(nn.Sequential(nn.ReLU(), fxq.prepare(residual())).eval()),
        fxq.StageError,
        ["submodule '1'", "already prepared"],
    ),
    "copy of a prepared one": (
        lambda: fxq.prepare(copy.deepcopy(fxq.prepare(residual()))),
        fxq.StageError,
        ["already prepared"],
    ),
    "not copyable": (lambda: fxq.prepare(NotCopyable().eval()), fxq.TraceError, ["NotCopyable", "__deepcopy__"]),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "words"), REFUSED_BY_PREPARE.values(), ids=REFUSED_BY_PREPARE.keys())
def test_prepare_says_what_is_wrong_and_what_to_do(
    call: Callable[[], Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as raised:
        call()
    assert isinstance(raised.value, fxq.FxqError)
    assert [word for word in words if word not in str(raised.value)] == []


def test_convert_lists_quantizers_that_were_not_calibrated(shared_prepared: GraphModule) -> None:
    with pytest.raises(fxq.CalibrationError, match=r"fxq\.calibrate\(prepared, batches\)") as raised:
        fxq.convert(shared_prepared)
    for path in ("conv1_input_quantizer", "conv2_input_quantizer", "fc_input_quantizer"):
        assert path in str(raised.value)


@pytest.mark.parametrize("least", [float("nan"), "5", True], ids=str)
def test_a_least_sqnr_that_is_no_number_is_refused_before_the_work(
    shared_prepared: GraphModule, converted: GraphModule, tmp_path: Path, least: Any
) -> None:
    """Nothing is below NaN: it would let every result pass."""
    for call in (
        lambda: fxq.convert(shared_prepared, least),
        lambda: fxq.quantize(nn.Linear(2, 2), None, min_sqnr_db=least),
        lambda: fxq.export_onnx(converted, tmp_path / "model.onnx", min_sqnr_db=least),
    ):
        with pytest.raises(fxq.InputError, match="min_sqnr_db must be a number of dB"):
            call()
    with pytest.raises(fxq.RecipeError, match="min_sqnr_db must be a number of dB"):
        fxq.recipe("tensorrt").replace(min_sqnr_db=least)


def test_calls_at_the_wrong_stage_say_what_they_take(shared_prepared: GraphModule, converted: GraphModule) -> None:
    takes_prepared = r"takes the result of fxq\.prepare\(model, \.\.\.\)"
    takes_converted = r"takes the result of fxq\.convert\(prepared\)"
    for model in (converted, residual()):
        with pytest.raises(fxq.StageError, match=f"calibrate {takes_prepared}"):
            fxq.calibrate(model, [images(2)])
        with pytest.raises(fxq.StageError, match=f"fit_ranges {takes_prepared}"):
            fxq.fit_ranges(model)
        with pytest.raises(fxq.StageError, match=f"convert {takes_prepared}"):
            fxq.convert(model)
    for model in (shared_prepared, residual()):
        with pytest.raises(fxq.StageError, match=f"export_onnx {takes_converted}"):
            fxq.export_onnx(model, "never-written.onnx")
    with pytest.raises(fxq.StageError, match="already prepared"):
        fxq.prepare(converted)
    with pytest.raises(fxq.StageError, match=r"explain takes the result of fxq\.prepare or fxq\.convert"):
        fxq.explain(residual())


def test_a_path_that_cannot_be_written_leaves_nothing_behind(converted: GraphModule, tmp_path: Path) -> None:
    with pytest.raises(fxq.ExportError, match=r"missing does not exist; create it"):
        fxq.export_onnx(converted, tmp_path / "missing" / "model.onnx")
    with pytest.raises(fxq.ExportError, match="is a directory; add a file name"):
        fxq.export_onnx(converted, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_export_needs_inputs_from_somewhere(tmp_path: Path) -> None:
    prepared = fxq.prepare(residual())
    fxq.calibrate(prepared, [images(2)])
    converted = fxq.convert(prepared)
    with pytest.raises(fxq.InputError, match=r"give it example_inputs, or give them to prepare\(\)"):
        fxq.export_onnx(converted, tmp_path / "model.onnx")


def test_a_model_in_training_mode_is_prepared_as_its_eval_self() -> None:
    model = residual().train()
    with pytest.warns(UserWarning, match=r"training mode.*model\.eval\(\)") as caught:
        prepared = fxq.prepare(model, images(2))
    assert caught[0].filename == __file__
    assert model.training
    assert not prepared.training
    with pytest.warns(UserWarning, match="training mode") as caught:
        fxq.quantize(model, [images(2)])
    assert caught[0].filename == __file__
    fxq.calibrate(prepared, [images(8)])
    reference = fxq.quantize(residual(), [images(8)], example_inputs=images(2))
    torch.testing.assert_close(fxq.convert(prepared)(images(4)), reference(images(4)), rtol=0, atol=0)
