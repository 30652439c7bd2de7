"""TensorQuantizer in the formats beside plain integers: float8, blocks of a weight, and dynamic ranges."""

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import CalibrationError, RangeError
from fxq.nn import TensorQuantizer
from fxq.quant.affine import affine_params, fake_affine_quant, fake_tensor_quant
from fxq.quant.descriptor import QuantDescriptor
from fxq.quant.float8 import fake_e4m3_quant

FLOAT8 = QuantDescriptor(num_bits=(4, 3))
INT4_BLOCKS = QuantDescriptor(num_bits=4, axis=0, block_size=32)


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def calibrated(descriptor: QuantDescriptor, x: Tensor, **how: object) -> TensorQuantizer:
    quantizer = TensorQuantizer(descriptor, if_quant=False, if_calib=True)
    quantizer(x)
    quantizer.load_calib_amax(**how)
    quantizer.disable_calib()
    quantizer.enable_quant()
    return quantizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("axis", [None, 0])
def test_float8_quantizes_like_the_function(axis: int | None, dtype: torch.dtype) -> None:
    x, later = data(4, 30).to(dtype), (data(4, 30, seed=1) * 2).to(dtype)
    amax = x.abs().max() if axis is None else x.abs().amax(1, keepdim=True)
    descriptor = FLOAT8.replace(axis=axis)
    assert torch.equal(TensorQuantizer(descriptor)(x), fake_e4m3_quant(x, amax))  # its own range
    quantizer = calibrated(descriptor, x)
    assert torch.equal(quantizer(later), fake_e4m3_quant(later, amax))
    assert quantizer(later).dtype == dtype
    assert torch.equal(quantizer.inverse_scale, torch.tensor(448.0) / quantizer.amax)


def test_float8_gradient_is_straight_through() -> None:
    x = torch.tensor([-1.5, -1.0, 0.2, 1.0, 1.5], requires_grad=True)
    TensorQuantizer(FLOAT8.replace(amax=1.0))(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_float8_qparams_are_those_of_the_operator() -> None:
    params = TensorQuantizer(FLOAT8.replace(amax=2.0)).qparams()
    assert (params.dtype, params.lo, params.hi, params.axis) == (torch.float8_e4m3fn, -448, 448, None)
    assert (params.scale.item(), params.zero_point.item()) == (torch.tensor(2.0).div(448).item(), 0)
    assert calibrated(FLOAT8.replace(axis=0), data(3, 4)).qparams().scale.shape == (3,)


@pytest.mark.parametrize("calibrator", ["max", "minmax", "moving_average", "histogram", "percentile", "mse"])
def test_float8_is_calibrated(calibrator: str) -> None:
    x = data(20_000)
    # Normal data: nothing sensible clips below two sigma; a histogram ends on a bin edge.
    assert 2 < calibrated(FLOAT8.replace(calibrator=calibrator), x).amax <= x.abs().max() * 1.001


def test_float8_entropy_is_refused_after_the_data_too() -> None:
    with pytest.raises(CalibrationError, match="float8 codes are not equally far apart"):
        calibrated(FLOAT8.replace(calibrator="histogram"), data(1000), method="entropy")


@pytest.mark.parametrize("inputs", [64, 40, 7], ids=["whole blocks", "a short last block", "one short block"])
def test_each_block_of_a_row_has_its_own_range(inputs: int) -> None:
    weight = data(5, inputs) * torch.logspace(-3, 3, inputs)
    by_hand = torch.cat(
        [fake_tensor_quant(part, part.abs().amax(1, keepdim=True), 4, False, False) for part in weight.split(32, 1)], 1
    )
    assert torch.equal(TensorQuantizer(INT4_BLOCKS)(weight), by_hand)
    quantizer = calibrated(INT4_BLOCKS, weight)
    assert quantizer.amax.shape == (5, -(-inputs // 32))
    assert torch.equal(quantizer(weight), by_hand)


def test_qparams_of_blocks_have_a_step_for_each() -> None:
    weight = data(5, 40)
    params = calibrated(INT4_BLOCKS, weight).qparams()
    assert params.scale.shape == params.zero_point.shape == (5, 2)
    assert (params.axis, params.block_size, params.dtype, params.lo, params.hi) == (1, 32, torch.int8, -8, 7)
    assert torch.equal(params.scale[:, 1], weight[:, 32:].abs().amax(1) / 7)


def test_gradient_of_a_weight_in_blocks_is_straight_through() -> None:
    weight = data(3, 32)
    quantizer = calibrated(INT4_BLOCKS, weight / 2)
    weight.requires_grad_()
    quantizer(weight).sum().backward()
    assert torch.equal(weight.grad, (weight.abs() <= quantizer.amax).float())


def test_blocks_refuse_what_has_none() -> None:
    with pytest.raises(RangeError, match=r"\(out, in\), got \(4, 3, 2\)"):
        TensorQuantizer(INT4_BLOCKS)(data(4, 3, 2))
    with pytest.raises(RangeError, match=r"of shape \(out, blocks\), a value for each 32 inputs"):
        TensorQuantizer(INT4_BLOCKS).amax = 1.0
    with pytest.raises(RangeError, match=r"its range has shape \(4, 1\) and the input \(4, 64\)"):
        calibrated(INT4_BLOCKS, data(4, 32))(data(4, 64))
    with pytest.raises(CalibrationError, match="cannot fit by 'mse'"):
        calibrated(INT4_BLOCKS, data(4, 32), method="mse")


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_dynamic_quantizer_measures_each_input_and_stores_nothing(symmetric: bool) -> None:
    quantizer = TensorQuantizer(QuantDescriptor(calibrator="dynamic", symmetric=symmetric), if_calib=True)
    for seed in range(2):
        x = data(4, 5, seed=seed) + seed
        by_range = fake_affine_quant(x, *affine_params(x.min(), x.max(), -128, 127), -128, 127)
        expected = fake_tensor_quant(x, x.abs().max(), narrow_range=False) if symmetric else by_range
        assert torch.equal(quantizer(x), expected)
    quantizer.load_calib_amax()
    assert quantizer.is_dynamic
    assert not quantizer.has_range
    assert quantizer.calibrator is None
    assert quantizer.state_dict() == {}


def test_a_dynamic_quantizer_takes_no_range() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(calibrator="dynamic", name="fc.input"))
    with pytest.raises(RangeError, match=r"fc\.input.*stores no range"):
        quantizer.amax = 1.0
    with pytest.raises(CalibrationError, match=r"fc\.input.*its own"):
        quantizer.qparams()
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"0\._amax"'):
        nn.Sequential(quantizer).load_state_dict({"0._amax": torch.tensor(1.0)})
    assert not quantizer.has_range


def test_a_quantizer_becomes_dynamic_and_static_again() -> None:
    x = data(8)
    quantizer = calibrated(QuantDescriptor(), x)
    quantizer.use_calibrator("dynamic")
    assert not quantizer.has_range
    assert torch.equal(quantizer(2 * x), fake_tensor_quant(2 * x, 2 * x.abs().max(), narrow_range=False))
    quantizer.use_calibrator("max")
    quantizer.enable_calib()
    quantizer(x)
    quantizer.load_calib_amax()
    assert quantizer.amax == x.abs().max()


@pytest.mark.parametrize("descriptor", [FLOAT8, FLOAT8.replace(axis=0), INT4_BLOCKS], ids=str)
def test_state_dict_restores_these_ranges_too(descriptor: QuantDescriptor) -> None:
    x = data(4, 64)
    quantizer = calibrated(descriptor, x)
    for other in (TensorQuantizer(descriptor), calibrated(descriptor, x * 3)):
        other.load_state_dict(quantizer.state_dict())
        assert torch.equal(other(x), quantizer(x))


def test_printing_names_the_format() -> None:
    assert TensorQuantizer(FLOAT8.replace(amax=2.0)).extra_repr() == "float8 e4m3 fake per-tensor amax=2.0000 quant"
    expected = "4bit fake block=32 dynamic calibrator=MaxCalibrator quant"
    assert TensorQuantizer(INT4_BLOCKS).extra_repr() == expected
    assert TensorQuantizer(QuantDescriptor(calibrator="dynamic")).extra_repr() == "8bit fake per-tensor dynamic quant"
