"""prepare, convert, quantize, export_onnx on models of many shapes: signatures, dtypes, batch sizes, numbers."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from support.models import Digits
from support.small import images, residual
from torch import Tensor, nn

import fxq
from fxq.runtimes import get_runtime


class ManyOutputs(nn.Module):
    """Returns a dict that holds a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = self.first(x)
        return {"hidden": hidden, "both": (self.second(hidden), x)}


class Signature(nn.Module):
    """Has a default and a keyword-only parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: float = 2.0, *, shift: float = 0.0) -> Tensor:
        return self.fc(x) * scale + shift


class Flat(nn.Module):
    """Reads its batch size, and passes it on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).view(x.size(0), -1))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.parametrize("recipe", ["tensorrt", "onnxruntime", "openvino"])
def test_quantize_is_prepare_calibrate_and_convert(recipe: str) -> None:
    in_one = fxq.quantize(residual(), images(16).split(8), recipe, images(2))
    prepared = fxq.prepare(residual(), images(2), recipe)
    fxq.calibrate(prepared, images(16).split(8))
    torch.testing.assert_close(in_one(images(4)), fxq.convert(prepared)(images(4)), rtol=0, atol=0)


@pytest.mark.parametrize("recipe", ["tensorrt", "onnxruntime", "openvino"])
@torch.no_grad()
def test_a_converted_model_computes_what_the_prepared_one_does_but_for_rounding_ties(recipe: str) -> None:
    prepared = fxq.prepare(residual(), images(2), recipe)
    fxq.calibrate(prepared, images(64).split(32))
    converted = fxq.convert(prepared)
    x = images(64, seed=2)
    outputs = prepared(x)
    step = float(outputs.max() - outputs.min()) / 255
    error = (converted(x) - outputs).abs()
    # x * (hi / amax) and x / (amax / hi) round a tie apart now and then: then one code of one tensor is one step off.
    # Where that did not happen, the outputs differ by float32 rounding only.
    assert float(error.max()) <= 2 * step
    assert float((error > 1e-5).float().mean()) < 0.1
    # Both are near the float model: 8 bits in each of 7 tensors.
    assert float((outputs - residual()(x)).abs().max()) <= 8 * step


def test_a_converted_model_holds_int8_weights() -> None:
    state = fxq.quantize(residual(), images(8).split(4)).state_dict()
    for path in ("conv1", "conv2", "fc"):
        assert state[f"{path}.weight"].dtype == torch.int8
        assert state[f"{path}.weight_scale"].shape == state[f"{path}.weight"].shape[:1]


def test_a_prepared_model_is_a_close_float_model_before_calibration_and_in_eval_mode() -> None:
    prepared = fxq.prepare(residual(), images(2))
    assert not prepared.training
    # Without a range each tensor is quantized with its own: 8 bits.
    torch.testing.assert_close(prepared(images(4)), residual()(images(4)), rtol=0, atol=0.05)


@pytest.mark.parametrize("make", [residual, lambda: seeded(Flat)], ids=["residual", "reads its batch size"])
@pytest.mark.parametrize("with_inputs", [True, False], ids=["example inputs", "none"])
def test_another_batch_size_works(make: Callable[[], nn.Module], with_inputs: bool) -> None:
    converted = fxq.quantize(make(), images(8).split(8), example_inputs=images(2) if with_inputs else None)
    outputs = converted(images(5))
    for index in range(5):
        torch.testing.assert_close(converted(images(5)[index : index + 1])[0], outputs[index], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", ["tensorrt", "onnxruntime"])
def test_outputs_keep_their_structure(recipe: str) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    converted = fxq.quantize(seeded(ManyOutputs), [x], recipe, x)
    outputs = converted(x)
    assert list(outputs) == ["hidden", "both"]
    assert isinstance(outputs["both"], tuple)
    expected = seeded(ManyOutputs)(x)
    torch.testing.assert_close(outputs["hidden"], expected["hidden"], rtol=0, atol=0.1)
    torch.testing.assert_close(outputs["both"][0], expected["both"][0], rtol=0, atol=0.1)


def test_the_call_signature_is_kept() -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    model = seeded(Signature)
    prepared = fxq.prepare(model, x)
    fxq.calibrate(prepared, [x])
    for quantized in (prepared, fxq.convert(prepared)):
        parameters = inspect.signature(quantized.forward).parameters
        assert [(name, one.default) for name, one in parameters.items() if name != "x"] == [
            ("scale", 2.0),
            ("shift", 0.0),
        ]
        torch.testing.assert_close(quantized(x=x), model(x), rtol=0, atol=0.1)
        torch.testing.assert_close(quantized(x, 3.0, shift=1.0), model(x, 3.0, shift=1.0), rtol=0, atol=0.15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    model = residual().to(dtype)
    prepared = fxq.prepare(model, images(2).to(dtype), qat=True)
    fxq.calibrate(prepared, images(16).to(dtype).split(8))
    assert all(parameter.dtype == dtype for parameter in prepared.parameters())
    for quantized in (prepared, fxq.convert(prepared)):
        outputs = quantized(images(4).to(dtype))
        assert outputs.dtype == dtype
        torch.testing.assert_close(outputs.float(), residual()(images(4)), rtol=0, atol=0.1)


def test_a_model_without_anything_to_quantize_passes_through() -> None:
    with pytest.warns(UserWarning, match="nothing was quantized"):
        converted = fxq.quantize(nn.Sequential(nn.ReLU(), nn.Flatten()).eval(), [images(4)])
    torch.testing.assert_close(converted(images(4)), images(4).relu().flatten(1), rtol=0, atol=0)


def test_verify_accepts_the_built_in_passes() -> None:
    fxq.prepare(residual(), images(2), verify=True)
    fxq.prepare(residual(), images(2), "onnxruntime", qat=True, verify=True)


def test_two_models_from_one_do_not_share_what_they_learn() -> None:
    model = residual()
    first, second = fxq.prepare(model, images(2)), fxq.prepare(model, images(2))
    fxq.calibrate(first, [images(4)])
    assert not second.conv1_input_quantizer.has_range
    pointers = {parameter.data_ptr() for parameter in first.parameters()}
    assert pointers.isdisjoint(parameter.data_ptr() for parameter in [*second.parameters(), *model.parameters()])


def test_the_progress_bar_writes_nothing_where_nobody_watches(capfd: pytest.CaptureFixture[str]) -> None:
    fxq.quantize(residual(), images(8).split(4), progress=True)
    assert capfd.readouterr() == ("", "")


def test_example_inputs_are_remembered_for_export_and_can_be_replaced(tmp_path: Path) -> None:
    converted = fxq.quantize(residual(), images(8).split(4), example_inputs=images(2))
    report = fxq.export_onnx(converted, tmp_path / "remembered.onnx", dynamic_batch=False)
    assert _input_shape(report.path) == [2, 1, 8, 8]
    report = fxq.export_onnx(converted, str(tmp_path / "given.onnx"), images(3), dynamic_batch=False)
    assert _input_shape(report.path) == [3, 1, 8, 8]


@pytest.mark.parametrize("recipe", ["tensorrt", "onnxruntime"])
def test_the_file_is_as_accurate_on_digits_as_the_prepared_model(digits: Digits, recipe: str, tmp_path: Path) -> None:
    prepared = fxq.prepare(digits.model, digits.test_images[:2], recipe)
    fxq.calibrate(prepared, digits.training_images[:128].split(64))
    x = digits.test_images
    with torch.no_grad():
        in_float, fake = digits.accuracy(digits.model(x)), digits.accuracy(prepared(x))
    report = fxq.export_onnx(fxq.convert(prepared), tmp_path / "digits.onnx")
    logits = torch.from_numpy(get_runtime("onnxruntime").run(report.path, x)[0])
    # A rounding tie may flip 2 of 1000 digits; 8 bits cost a trained network less than one percent.
    assert digits.accuracy(logits) == pytest.approx(fake, abs=0.0021)
    assert digits.accuracy(logits) >= in_float - 0.01


def _input_shape(path: Path) -> list[int | str]:
    return [size.dim_param or size.dim_value for size in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]


@pytest.mark.parametrize(
    "batches",
    [[images(4, seed=0)], [(images(4, seed=0), torch.zeros(4))], (batch for batch in [images(4, seed=0)])],
    ids=["tensors", "pairs", "generator"],
)
def test_one_call_remembers_the_first_batch_for_the_export(batches: Any, tmp_path: Path) -> None:
    report = fxq.export_onnx(fxq.quantize(residual(), batches, "onnxruntime"), tmp_path / "model.onnx")
    assert report.path.is_file()


def test_an_output_that_is_a_size_is_refused_with_the_reason(tmp_path: Path) -> None:
    class WithSize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
            return self.conv(x), x.shape[0]

    x = images(2, seed=0)
    with pytest.raises(fxq.ExportError, match="return tensors only"):
        fxq.export_onnx(fxq.quantize(WithSize().eval(), [x]), tmp_path / "model.onnx")


def test_a_module_left_in_training_mode_is_named_where_that_makes_a_difference() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.ReLU(), nn.BatchNorm1d(4)).eval()
    model[2].train()
    fxq.prepare(model)
    model[1].train()
    with pytest.warns(UserWarning, match=r"the model's '1' \(Dropout\) are in training mode.*its eval\(\) self"):
        fxq.prepare(model)
