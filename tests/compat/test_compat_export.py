"""torch.onnx.export of models of fxq.compat: calls of the original's days, and the numbers in ONNX Runtime."""

import inspect
import io
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.compat.pytorch_quantization import enable_onnx_export
from fxq.compat.pytorch_quantization import nn as quant_nn
from fxq.compat.pytorch_quantization.nn import TensorQuantizer
from fxq.compat.pytorch_quantization.tensor_quant import QuantDescriptor
from fxq.errors import CompatError, ExportError
from fxq.runtimes import get_runtime

TRUE_EXPORT = torch.onnx.export


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def make_model(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        quant_nn.QuantConv2d(3, 4, 3, **options), nn.BatchNorm2d(4), nn.ReLU(), quant_nn.QuantAdaptiveAvgPool2d(1)
    )


def quantizers(model: nn.Module) -> Iterator[TensorQuantizer]:
    return (module for module in model.modules() if isinstance(module, TensorQuantizer))


def calibrated(model: nn.Module, x: Tensor) -> nn.Module:
    for quantizer in quantizers(model):
        quantizer.enable_calib()
    with torch.no_grad():
        model.eval()(x)
    for quantizer in quantizers(model):
        quantizer.load_calib_amax()
        quantizer.disable_calib()
    return model


def assert_onnx_computes(file: str | bytes, model: nn.Module, x: Tensor) -> list[str]:
    """Compare to a fraction of a step, and return the kinds of the nodes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx" if isinstance(file, bytes) else Path(file)  # its weights may lie beside it
        if isinstance(file, bytes):
            path.write_bytes(file)
        outputs = get_runtime("onnxruntime").run(path, x)[0]
        kinds = [node.op_type for node in onnx.load(path).graph.node]
    np.testing.assert_allclose(outputs, model.eval()(x).detach().numpy(), atol=1e-5)
    return kinds


def test_calls_of_the_original_are_translated(tmp_path: Path, x: Tensor) -> None:
    model, path = calibrated(make_model(), x).train(), str(tmp_path / "model.onnx")

    with enable_onnx_export(), pytest.warns(UserWarning, match=r"no longer takes|opset 10 is too low") as warned:
        torch.onnx.export(model, x, path, verbose=True, opset_version=10, enable_onnx_checker=False)

    assert len(warned) == 2
    assert all(each.filename == __file__ for each in warned)
    assert model.training
    assert assert_onnx_computes(path, model, x).count("QuantizeLinear") == 3


def test_nothing_stays_on_after_an_exception(x: Tensor) -> None:
    model = make_model()

    with pytest.raises(ExportError, match=r"'0\._input_quantizer'.*Calibrate and load amax"), enable_onnx_export():
        torch.onnx.export(model, x, "never.onnx")

    assert torch.onnx.export is TRUE_EXPORT
    assert not TensorQuantizer._enable_onnx_export
    assert model.training


def test_without_any_switch_torch_is_left_alone(tmp_path: Path, x: Tensor) -> None:
    model, path = calibrated(make_model(), x), str(tmp_path / "model.onnx")

    TRUE_EXPORT(model, (x,), path, verbose=False)

    assert assert_onnx_computes(path, model, x).count("DequantizeLinear") == 3


def test_class_switch_wraps_the_exporter_until_it_is_off(tmp_path: Path, x: Tensor) -> None:
    assert not TensorQuantizer.use_fb_fake_quant
    TensorQuantizer.use_fb_fake_quant = True
    TensorQuantizer.use_fb_fake_quant = True
    with enable_onnx_export():
        pass
    assert torch.onnx.export is not TRUE_EXPORT
    assert inspect.signature(torch.onnx.export) == inspect.signature(TRUE_EXPORT)
    model, path = make_model(), str(tmp_path / "model.onnx")

    with pytest.warns(UserWarning, match=r"3 quantizers have not been calibrated \('0\._input_quantizer'"):
        torch.onnx.export(model, x, path, opset_version=18, verbose=False)

    assert_onnx_computes(path, model, x)
    assert [quantizer.amax for quantizer in quantizers(model)] == [None] * 3
    TensorQuantizer.use_fb_fake_quant = False
    assert torch.onnx.export is TRUE_EXPORT


def test_models_without_quantizers_pass_through(tmp_path: Path, x: Tensor) -> None:
    with enable_onnx_export(), warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.onnx.export(nn.ReLU().eval(), (x,), tmp_path / "relu.onnx", verbose=False)
        with pytest.raises(TypeError, match="enable_onnx_checker"):
            torch.onnx.export(nn.ReLU(), (x,), tmp_path / "relu.onnx", enable_onnx_checker=False)


@pytest.mark.parametrize(
    ("bits", "opset"), [(4, 18), (8, 18), (16, 21), ((4, 3), 19)], ids=["int4", "int8", "int16", "float8"]
)
def test_opset_fits_the_format(x: Tensor, bits: Any, opset: int) -> None:
    options = {"quant_desc_input": QuantDescriptor(bits), "quant_desc_weight": QuantDescriptor(bits, axis=0)}
    model, buffer = calibrated(make_model(**options), x), io.BytesIO()

    with enable_onnx_export(), pytest.warns(UserWarning, match=f"opset {opset} is written"):
        torch.onnx.export(model, x, buffer, opset_version=13, verbose=False)

    assert onnx.load_from_string(buffer.getvalue()).opset_import[0].version == opset
    assert_onnx_computes(buffer.getvalue(), model, x)


@pytest.mark.parametrize("clips", [True, False], ids=["clip on", "clip off"])
def test_learned_and_scaled_ranges_are_exported(x: Tensor, clips: bool) -> None:
    options = {
        "quant_desc_input": QuantDescriptor(learn_amax=True, amax=1.5),
        "quant_desc_weight": QuantDescriptor(axis=0, scale_amax=0.8),
    }
    model, buffer = calibrated(make_model(**options), x), io.BytesIO()
    with torch.no_grad():
        model[0].input_quantizer.clip.clip_value_min.fill_(-1.0)
    if not clips:
        model[0].input_quantizer.disable_clip()

    with enable_onnx_export():
        torch.onnx.export(model, x, buffer, verbose=False)

    assert_onnx_computes(buffer.getvalue(), model, x)


def test_disabled_quantizers_need_no_range(x: Tensor) -> None:
    model, buffer = make_model().eval(), io.BytesIO()
    for quantizer in list(quantizers(model))[1:]:
        quantizer.disable()
    model[0].input_quantizer.amax = 3.0

    with enable_onnx_export():
        torch.onnx.export(model, x, buffer, verbose=False)

    assert assert_onnx_computes(buffer.getvalue(), model, x).count("QuantizeLinear") == 1


def test_the_old_exporter_is_refused(x: Tensor) -> None:
    with enable_onnx_export(), pytest.raises(CompatError, match=r"leave dynamo out, or use fxq\.prepare"):
        torch.onnx.export(calibrated(make_model(), x), x, "never.onnx", dynamo=False)


def test_the_better_route_writes_integer_weights(tmp_path: Path, x: Tensor) -> None:
    model, path = calibrated(make_model(), x), str(tmp_path / "model.onnx")
    expected = model(x)

    converted = fxq.convert(fxq.prepare(model, x, recipe="tensorrt"))
    fxq.export_onnx(converted, path)

    # Folding the batch norm moves no range here: it has no statistics yet.
    torch.testing.assert_close(converted(x), expected, atol=1e-4, rtol=1e-4)
    types = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.INT8 in [kind for name, kind in types.items() if name.endswith("weight")]
