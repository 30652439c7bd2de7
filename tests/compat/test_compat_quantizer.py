"""TensorQuantizer of fxq.compat: switches, setters, learned clip and numbers of pytorch-quantization."""

import copy

import numpy as np
import pytest
import torch

import fxq
from fxq.compat.pytorch_quantization import calib
from fxq.compat.pytorch_quantization.nn import TensorQuantizer
from fxq.compat.pytorch_quantization.tensor_quant import QuantDescriptor
from fxq.errors import CalibrationError, DescriptorError, RangeShapeError

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def reference(x: torch.Tensor, amax: torch.Tensor | float, bits: int = 8, lowest: int = -128) -> torch.Tensor:
    """Return what the formula of numerics says, in numpy and double precision."""
    hi = 2 ** (bits - 1) - 1
    scale = hi / np.asarray(amax, dtype=np.float64)
    return torch.from_numpy(np.clip(np.round(x.numpy().astype(np.float64) * scale), lowest, hi) / scale).float()


def test_it_is_a_quantizer_of_fxq_with_the_full_range() -> None:
    quantizer = TensorQuantizer()
    quantizer.amax = 1.0

    assert isinstance(quantizer, fxq.TensorQuantizer)
    torch.testing.assert_close(quantizer(X), reference(X, 1.0))
    assert quantizer(torch.tensor([-5.0])) == pytest.approx(-128 / 127)


def test_integer_codes_have_the_narrow_range_and_a_scale() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(fake_quant=False, amax=1.0))
    assert quantizer.scale is None

    codes = quantizer(torch.tensor([-5.0, 0.5, 5.0]))

    assert codes.tolist() == [-127, 64, 127]
    assert quantizer.scale == 127


def test_dynamic_range_per_channel_is_scaled() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=1, scale_amax=0.7))
    amax = X.abs().amax(0, keepdim=True) * 0.7

    torch.testing.assert_close(quantizer(X), reference(X, amax))
    torch.testing.assert_close(quantizer._get_amax(X), amax)
    assert quantizer.amax is None
    assert not hasattr(quantizer, "_amax")


def test_calibration_without_data_says_so() -> None:
    quantizer = TensorQuantizer(if_calib=True)

    with pytest.raises(CalibrationError, match="Calibrator returned None"):
        quantizer.load_calib_amax()
    with pytest.warns(UserWarning, match="saw no data"):
        quantizer.load_calib_amax(strict=False)
    assert quantizer.amax is None


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_histogram_fits_as_its_calibrator_does(method: str) -> None:
    quantizer = TensorQuantizer(QuantDescriptor(calib_method="histogram"), if_quant=False, if_calib=True)
    reference = calib.HistogramCalibrator(8, None, False)
    for seed in range(2):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(seed))
        quantizer(x)
        reference.collect(x)

    quantizer.load_calib_amax(method)

    assert isinstance(quantizer._calibrator, calib.HistogramCalibrator)
    assert quantizer.amax == reference.compute_amax(method)


def test_given_range_is_replaced_by_hand_and_left_by_fxq() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(amax=9.0), if_calib=True)
    assert quantizer.calibrator is None  # fxq.calibrate leaves it alone
    quantizer(X)

    quantizer.load_calib_amax()

    assert quantizer.amax == X.abs().max()


def test_setters_change_the_format() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(amax=1.0))
    quantizer.num_bits, quantizer.narrow_range = 4, True
    torch.testing.assert_close(quantizer(X), reference(X, 1.0, bits=4, lowest=-7))
    quantizer.narrow_range, quantizer.unsigned = False, True

    assert (quantizer.num_bits, quantizer._num_bits, quantizer._axis, quantizer.maxbound) == (4, 4, None, 15)
    with pytest.raises(DescriptorError, match="num_bits"):
        quantizer.num_bits = 1


def test_a_stored_range_keeps_its_shape() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=0))
    quantizer.amax = np.ones((5, 1), dtype=np.float32)
    with pytest.raises(RangeShapeError, match="Changing shape when setting amax is not allowed"):
        quantizer.amax = 2.0
    quantizer.amax = torch.full((5, 1), 2.0)
    assert torch.equal(quantizer.amax, torch.full((5, 1), 2.0))
    del quantizer._amax
    assert quantizer.amax is None


def test_a_range_of_several_values_broadcasts_without_an_axis() -> None:
    quantizer = TensorQuantizer()
    quantizer.amax = np.array([1.0, 2.0, 3.0, 4.0])

    torch.testing.assert_close(quantizer(X), reference(X, np.array([1.0, 2.0, 3.0, 4.0])))


def test_learned_clip_gets_the_gradient_of_what_it_clips() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(learn_amax=True, amax=0.5))
    x = torch.tensor([-2.0, -0.5, 0.1, 0.5, 3.0], requires_grad=True)

    quantizer(x).backward(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]))

    assert quantizer.clip.clip_value_min.grad == 3
    assert quantizer.clip.clip_value_max.grad == 24
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 4, 0, 0]
    torch.testing.assert_close(quantizer(x).detach(), reference(x.detach().clamp(-0.5, 0.5), 0.5))


def test_learned_clip_starts_at_the_calibrated_range() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(learn_amax=True), if_calib=True)
    with pytest.raises(CalibrationError, match="no range to start from"):
        quantizer.init_learn_amax()
    quantizer(X)
    quantizer.load_calib_amax()
    quantizer.init_learn_amax()

    assert quantizer.clip.clip_value_max == -quantizer.clip.clip_value_min == X.abs().max()
    quantizer.disable_clip()
    assert not quantizer.clip.clip_value_max.requires_grad
    torch.testing.assert_close(quantizer(X), reference(X, X.abs().max()))


def test_clip_needs_a_learned_range() -> None:
    with pytest.raises(DescriptorError, match="learn_amax is False"):
        TensorQuantizer(if_clip=True)
    with pytest.raises(CalibrationError, match="Called init_learn_amax with learn_amax=False"):
        TensorQuantizer().init_learn_amax()


def test_input_scale_comes_first_and_keeps_its_shape() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(amax=127.0))
    quantizer.pre_quant_scale = torch.tensor([[1.0, 2.0, 3.0, 4.0]])

    assert quantizer(torch.tensor([[0.0, 0.4, 1.1, 2.0]])).tolist() == [[0, 1, 3, 8]]
    assert quantizer.half()(torch.ones(1, 4, dtype=torch.half)).dtype == torch.half
    with pytest.raises(RangeShapeError, match="pre_quant_scale"):
        quantizer.pre_quant_scale = 2.0


def test_it_prints_as_in_the_tutorial() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=0))
    assert repr(quantizer) == (
        "TensorQuantizer(8bit fake axis=0 amax=dynamic calibrator=MaxCalibrator(track_amax=False) quant)"
    )
    quantizer.amax = torch.linspace(0, 0.7817, 64)
    assert "amax=[0.0000, 0.7817](64)" in repr(quantizer)
    quantizer.disable()
    assert repr(quantizer) == "TensorQuantizer(disabled)"


def test_copies_share_nothing() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(amax=1.0))
    twin = copy.deepcopy(quantizer)
    twin.amax = 2.0

    assert quantizer.amax == 1.0
