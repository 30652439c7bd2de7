"""Functions, calibrators and helpers of fxq.compat, against formulas and torch's own operators."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxq
from fxq.compat.pytorch_quantization import calib, cuda_ext, tensor_quant, utils
from fxq.compat.pytorch_quantization import nn as quant_nn
from fxq.compat.pytorch_quantization.calib.calibrator import _Calibrator
from fxq.compat.pytorch_quantization.nn import functional
from fxq.compat.pytorch_quantization.optim import helper
from fxq.compat.pytorch_quantization.utils import quant_logging
from fxq.errors import CalibrationError, DescriptorError, InputError, RangeError


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_affine_quantization_is_torchs_where_the_range_holds_zero() -> None:
    x = randn(100)
    low, high = -1.0, 2.0
    step = torch.tensor(high - low) / 255
    zero_point = int(-128 - torch.round(torch.tensor(low) / step))

    expected = torch.fake_quantize_per_tensor_affine(x, float(step), zero_point, -128, 127)

    # torch multiplies by the reciprocal of the step.
    torch.testing.assert_close(tensor_quant.fake_affine_tensor_quant(x, low, high), expected, atol=1e-6, rtol=0)


def test_affine_range_need_not_hold_zero() -> None:
    x = torch.linspace(1, 2, 256)

    found = tensor_quant.fake_affine_tensor_quant(x, 1.0, 2.0)

    assert (found - x).abs().max() <= 0.5 / 255 + 1e-6


def test_affine_gradient_is_zero_outside_of_the_range() -> None:
    x = torch.tensor([-2.0, -1.0, 0.3, 2.0, 2.001], requires_grad=True)

    tensor_quant.fake_affine_tensor_quant(x, -1.0, 2.0).sum().backward()

    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    with pytest.raises(RangeError, match="empty or not finite"):
        tensor_quant.fake_affine_tensor_quant(x, 1.0, -1.0)


def test_float8_is_torchs_own() -> None:
    x = randn(1000) * 10

    torch.testing.assert_close(tensor_quant.scaled_e4m3(x), x.to(torch.float8_e4m3fn).float(), atol=0, rtol=0)
    scaled = (x * (448 / x.abs().max())).to(torch.float8_e4m3fn).float() / (448 / x.abs().max())
    torch.testing.assert_close(tensor_quant.scaled_e4m3(x, x.abs().max()), scaled)
    with pytest.raises(DescriptorError, match="Only support E=4 & M=3"):
        tensor_quant.scaled_e4m3(x, None, 5, 2)


def test_half_precision_codes_come_with_a_scale_that_fits() -> None:
    x = randn(100).half()
    codes, scale = tensor_quant.tensor_quant(x, x.abs().max())

    assert codes.dtype == scale.dtype == torch.half
    with pytest.raises(ValueError, match="scale is too large for FP16"):
        tensor_quant.tensor_quant(x, torch.tensor(1e-4), 8, False)
    with pytest.raises(TypeError, match="Negative values encountered"):
        tensor_quant.tensor_quant(x, x.abs().max(), 8, True)


def test_classes_apply_what_the_functions_do() -> None:
    x = randn(3, 4)
    for kind, function in (
        (tensor_quant.FakeTensorQuantFunction, tensor_quant.fake_tensor_quant),
        (tensor_quant.LegacyFakeTensorQuantFunction, tensor_quant.legacy_fake_tensor_quant),
        (tensor_quant.ScaledE4M3Function, tensor_quant.scaled_e4m3),
    ):
        assert torch.equal(kind.apply(x, x.abs().max()), function(x, x.abs().max()))
    assert torch.equal(tensor_quant.TensorQuantFunction.apply(x, 1.0)[0], tensor_quant.tensor_quant(x, 1.0)[0])
    affine = tensor_quant.FakeAffineTensorQuantFunction.apply(x, -1.0, 1.0)
    assert torch.equal(affine, tensor_quant.fake_affine_tensor_quant(x, -1.0, 1.0))


def test_the_extension_computes_on_the_cpu() -> None:
    x, amax = randn(2, 3, 4), torch.tensor([0.5, 1e-26, 1.0])

    found = cuda_ext.fake_tensor_quant_with_axis(x, amax, axis=1)

    assert torch.equal(found, fxq.fake_tensor_quant(x, amax.reshape(1, 3, 1)))
    assert not found[:, 1].any()
    assert torch.equal(cuda_ext.fake_e4m3fy(x), tensor_quant.scaled_e4m3(x))
    assert torch.equal(cuda_ext.fake_tensor_quant(x, amax[2]), cuda_ext.fake_tensor_quant_(x, amax[2]))
    assert torch.equal(x, cuda_ext.fake_tensor_quant(x, amax[2]))


def test_clip_learns_the_bounds_that_it_is_told_to() -> None:
    clip = quant_nn.Clip(-0.5, 0.7, learn_max=True)
    x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)

    clip(x).sum().backward()

    assert [name for name, _ in clip.named_parameters()] == ["clip_value_max"]
    assert clip.clip_value_max.grad == 1
    assert torch.equal(clip(x), functional.ClipFunction.apply(x, -0.5, 0.7))
    with pytest.raises(ValueError, match="must be scalar"):
        quant_nn.Clip(np.array([0.3, 0.4]), 1.0, learn_min=True)


@pytest.mark.parametrize("axis", [None, 1, (1, 2), (0, 2), (0, 1, 2), (-1,)])
@pytest.mark.parametrize("keepdims", [True, False])
def test_reduce_amax_is_numpys(axis: Any, keepdims: bool) -> None:
    x = randn(3, 4, 5)
    found = utils.reduce_amax(x, axis, keepdims)

    expected = np.abs(x.numpy()).max(axis=axis, keepdims=keepdims and axis not in (None, (0, 1, 2)))
    np.testing.assert_array_equal(found.numpy(), expected)


def test_reduce_amax_refuses_axes_that_do_not_exist() -> None:
    for axis in ((0, 1, 2), (2,)):
        with pytest.raises(ValueError, match=r"axes|axis"):
            utils.reduce_amax(randn(2, 2), axis)


def test_calibrators_show_what_scripts_read() -> None:
    biggest, histogram = calib.MaxCalibrator(8, None, False, track_amax=True), calib.HistogramCalibrator(8, None, False)
    arrays = calib.HistogramCalibrator(8, None, False, num_bins=16, torch_hist=False)
    for calibrator in (biggest, histogram, arrays):
        calibrator.collect(torch.tensor([0.5, -2.0]))

    assert biggest._calib_amax == biggest.compute_amax() == biggest.amaxs[0] == 2
    assert histogram._calib_hist is not None
    assert histogram._calib_hist.sum() == 2
    assert isinstance(arrays._calib_bin_edges, np.ndarray)
    assert len(arrays._calib_bin_edges) == 17
    assert str(biggest) == "MaxCalibrator(track_amax=True)"
    assert str(histogram) == "HistogramCalibrator(calib_bin_edges=[0.000, ..., 2.000](2049))"
    assert isinstance(biggest, _Calibrator)
    assert isinstance(histogram, _Calibrator)
    with pytest.raises(TypeError, match="Unknown calibration method best"):
        histogram.compute_amax("best")


def test_a_calibrator_of_ones_own_is_used() -> None:
    class Mean(_Calibrator):
        def collect(self, x: torch.Tensor) -> None:
            self.mean = x.abs().mean()

        def reset(self) -> None:
            del self.mean

        def compute_amax(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return self.mean

    quantizer = quant_nn.TensorQuantizer(if_calib=True)
    quantizer._calibrator = Mean(8, None, False)
    quantizer(torch.tensor([1.0, -3.0]))
    quantizer.load_calib_amax()

    assert quantizer.amax == 2
    with pytest.raises(CalibrationError, match="does not merge"):
        quantizer._calibrator.merge(quantizer._calibrator)


@pytest.mark.parametrize("method", ["max", "percentile", "mse", "entropy"])
@pytest.mark.parametrize("perchannel", [True, False])
def test_weights_are_calibrated_one_channel_at_a_time(method: str, perchannel: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(quant_nn.QuantLinear(400, 2), quant_nn.QuantConvTranspose1d(3, 2, 50))

    calib.calibrate_weights(model, method, perchannel, percentile=99)

    for module, axis in ((model[0], 0), (model[1], 1)):
        parts = module.weight.unbind(axis) if perchannel else [module.weight]
        for part, found in zip(parts, module.weight_quantizer.amax.flatten(), strict=True):
            calibrator = calib.HistogramCalibrator(8, None, False)
            calibrator.collect(part)
            assert found == calibrator.compute_amax(method, percentile=99)
    shape = (1, 2, 1) if perchannel else ()
    assert model[1].weight_quantizer.amax.shape == shape
    with pytest.raises(TypeError, match="Unsupported calibration method best"):
        calib.calibrate_weights(model, "best")
    model[1].weight.data[0] = float("nan")
    with pytest.raises(CalibrationError, match="the weight of '1'"):
        calib.calibrate_weights(model, perchannel=perchannel)


def test_parameters_are_grouped_and_frozen_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = helper.group_parameters(
        model, [["0.weight", r"1\.weight"], ["bias"]], lrs=[0.1, 0.2], momentums=[0.3, 0.4]
    )

    optimizer = torch.optim.SGD(groups, lr=1)
    assert [(len(group["params"]), group["lr"], group["momentum"]) for group in optimizer.param_groups] == [
        (2, 0.1, 0.3),
        (2, 0.2, 0.4),
    ]
    helper.freeze_parameters(model, ["bias"])
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False, True, False]
    for bad in ({"lrs": [0.1]}, {"weight_decays": [1, 2, 3]}):
        with pytest.raises(InputError, match="must match"):
            helper.group_parameters(model, [["weight"], ["bias"]], **bad)
    with pytest.raises(InputError, match="list of list"):
        helper.group_parameters(model, ["weight"])  # type: ignore[list-item]


def test_weights_are_rounded_in_place() -> None:
    model = nn.Sequential(quant_nn.QuantLinear(3, 2), nn.Linear(2, 2))
    expected, untouched = model[0].quantized_weight(), model[1].weight.clone()

    helper.quant_weight_inplace(model)

    assert torch.equal(model[0].weight, expected)
    assert torch.equal(model[1].weight, untouched)


def test_root_logger_loses_its_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [logging.NullHandler(), logging.NullHandler()])

    quant_logging.reset_logger_handler()

    assert root.handlers == []
