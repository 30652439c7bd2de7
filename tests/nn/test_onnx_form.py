"""A model with quantizers placed by hand, written by torch.onnx.export and run by ONNX Runtime."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fxq.errors import CalibrationError, ExportError
from fxq.nn import TensorQuantizer
from fxq.quant.descriptor import QuantDescriptor
from fxq.runtimes import get_runtime

PER_CHANNEL = QuantDescriptor(axis=0)


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Scaled(nn.Module):
    """A quantized activation and a quantized weight, whose quantized values can be read from the output."""

    def __init__(self, activation: QuantDescriptor, weight: QuantDescriptor = PER_CHANNEL) -> None:
        super().__init__()
        self.weight = nn.Parameter(data(6, 40))
        self.activation, self.parameter = TensorQuantizer(activation), TensorQuantizer(weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(self.activation(x)), self.parameter(self.weight).t() * 1.0


def calibrated(model: Scaled, x: Tensor) -> Scaled:
    for quantizer, seen in ((model.activation, x), (model.parameter, model.weight)):
        quantizer.enable_calib()
        quantizer(seen)
        quantizer.load_calib_amax()
        quantizer.disable_calib()
    return model.eval()


def exported(model: nn.Module, x: Tensor, path: Path, **options: Any) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.onnx.export's own deprecations; what counts here is the result
        torch.onnx.export(model, (x,), path, verbose=False, **options)
    written = onnx.load(path)
    onnx.checker.check_model(written, full_check=True)
    return written


def ran(path: Path, x: Tensor) -> list[Tensor]:
    return [torch.from_numpy(found) for found in get_runtime("onnxruntime").run(path, x)]


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


FORMATS = [
    pytest.param(QuantDescriptor(), PER_CHANNEL, {}, id="int8"),
    pytest.param(QuantDescriptor(learn_amax=True), PER_CHANNEL.replace(learn_amax=True), {}, id="learned"),
    pytest.param(QuantDescriptor(unsigned=True), PER_CHANNEL.replace(narrow_range=True), {}, id="unsigned and narrow"),
    pytest.param(QuantDescriptor(symmetric=False, unsigned=True), PER_CHANNEL, {}, id="affine"),
    pytest.param(QuantDescriptor(symmetric=False, axis=-1), PER_CHANNEL.replace(num_bits=3), {}, id="affine channels"),
    pytest.param(QuantDescriptor(num_bits=4, fake_quant=False), PER_CHANNEL.replace(num_bits=4), {}, id="4 bit codes"),
    pytest.param(
        QuantDescriptor(num_bits=(4, 3)), PER_CHANNEL.replace(num_bits=(4, 3)), {"opset_version": 21}, id="float8"
    ),
    pytest.param(QuantDescriptor(num_bits=16), PER_CHANNEL.replace(num_bits=12), {"opset_version": 21}, id="16 bit"),
    pytest.param(
        QuantDescriptor(), PER_CHANNEL.replace(num_bits=4, block_size=32), {"opset_version": 21}, id="int4 blocks"
    ),
]


@pytest.mark.parametrize(("activation", "weight", "options"), FORMATS)
def test_onnx_runtime_computes_what_the_model_computes(
    activation: QuantDescriptor, weight: QuantDescriptor, options: dict[str, Any], tmp_path: Path
) -> None:
    x = data(5, 40, seed=1).abs() if activation.unsigned else data(5, 40, seed=1)
    model = calibrated(Scaled(activation, weight), x)
    later = 1.5 * x  # some of it beyond the range
    written = exported(model, x, tmp_path / "model.onnx", **options)
    assert operators(written).count("QuantizeLinear") == 2
    assert operators(written).count("DequantizeLinear") == 1 + activation.fake_quant
    steps = (model.activation.scale.max(), model.parameter.scale.max())
    for found, expected, step in zip(ran(tmp_path / "model.onnx", later), model(later), steps, strict=True):
        difference = (found - expected).abs()
        # x * scale here, x / step there: a value on a tie but for float32 rounding may take the next code. Few do.
        assert difference.max() <= (1 if not activation.fake_quant else step * 32 if weight.is_float8 else step * 1.01)
        assert (difference > 1e-5 * expected.abs().max()).float().mean() < 0.01


def test_ranges_are_constants_of_the_file(tmp_path: Path) -> None:
    model = calibrated(Scaled(QuantDescriptor(), PER_CHANNEL), data(5, 40))
    written = exported(model, data(5, 40), tmp_path / "model.onnx")
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in written.graph.initializer}
    for node in written.graph.node:
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[2]].dtype == np.int8
            assert (constants[node.input[1]] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_quantized_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    x = data(5, 40, seed=1).to(dtype)
    model = calibrated(Scaled(QuantDescriptor(), PER_CHANNEL).to(dtype), x)
    written = exported(model, x, tmp_path / "model.onnx")
    assert operators(written).count("QuantizeLinear") == 2
    floats = {value.data_type for value in written.graph.initializer if len(value.dims) < 2}
    assert floats == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT8}
    if dtype == torch.float16:  # ONNX Runtime has no Relu of bfloat16
        found = ran(tmp_path / "model.onnx", x)
        assert all(torch.equal(one, other) for one, other in zip(found, model(x), strict=True))


def test_the_batch_may_be_dynamic(tmp_path: Path) -> None:
    model = calibrated(Scaled(QuantDescriptor(num_bits=4), PER_CHANNEL), data(5, 40))
    exported(model, data(5, 40), tmp_path / "model.onnx", dynamic_shapes=({0: torch.export.Dim("batch")},))
    x = data(9, 40, seed=2)
    torch.testing.assert_close(ran(tmp_path / "model.onnx", x)[0], model(x)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"axis": -1}, {"unsigned": True}], ids=str)
def test_a_dynamic_quantizer_measures_in_the_file_too(options: dict[str, Any], tmp_path: Path) -> None:
    model = calibrated(Scaled(QuantDescriptor(calibrator="dynamic", **options), PER_CHANNEL), data(5, 40).abs())
    exported(model, data(5, 40).abs(), tmp_path / "model.onnx")
    x = data(5, 40, seed=3).abs() * 7
    # The same float operations in the same order; 1e-5 is a rounding of values up to 30.
    torch.testing.assert_close(ran(tmp_path / "model.onnx", x)[0], model(x)[0], rtol=0, atol=1e-5)


def test_a_quantizer_without_a_range_is_named(tmp_path: Path) -> None:
    model = Scaled(QuantDescriptor(name="fc.input"), PER_CHANNEL).eval()
    with pytest.raises(Exception, match=r"'fc\.input' has no range.*[Cc]alibrate and load amax before") as caught:
        exported(model, data(5, 40), tmp_path / "model.onnx")
    assert isinstance(caught.value.__cause__, CalibrationError)
    model.activation.disable()
    model.parameter.disable()
    assert "QuantizeLinear" not in operators(exported(model, data(5, 40), tmp_path / "model.onnx"))


def test_export_shows_nothing_to_a_calibrator(tmp_path: Path) -> None:
    x = data(5, 40)
    model = calibrated(Scaled(QuantDescriptor(), PER_CHANNEL), x)
    model.activation.enable_calib()
    exported(model, 100 * x, tmp_path / "model.onnx")
    model.activation.load_calib_amax()
    assert model.activation.amax == x.abs().max()


def test_a_failed_first_attempt_does_not_cost_the_quantizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch tries its strict mode next, which takes is_in_onnx_export() for False.
    model = calibrated(Scaled(QuantDescriptor(), PER_CHANNEL), data(5, 40))
    export = torch.export.export

    def only_strict(*args: Any, strict: bool = False, **kwargs: Any) -> Any:
        if not strict:
            raise RuntimeError("the first attempt failed")
        return export(*args, strict=True, **kwargs)

    monkeypatch.setattr(torch.export, "export", only_strict)
    with pytest.raises(Exception, match="the first attempt failed"):
        exported(model, data(5, 40), tmp_path / "model.onnx")


def test_the_older_exporter_writes_whole_8_bit_ranges(tmp_path: Path) -> None:
    x = data(5, 40)
    model = calibrated(Scaled(QuantDescriptor(), PER_CHANNEL), x)
    written = exported(model, x, tmp_path / "model.onnx", dynamo=False)
    assert operators(written).count("QuantizeLinear") == 2
    for found, expected in zip(ran(tmp_path / "model.onnx", x), model(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    narrow = calibrated(Scaled(QuantDescriptor(narrow_range=True), PER_CHANNEL), x)
    with pytest.raises(ExportError, match=r"dynamo=False.*got \(-127, 127\).*use dynamo=True"):
        exported(narrow, x, tmp_path / "model.onnx", dynamo=False)
