"""TensorQuantizer: assigned, forgotten and refused ranges, and the inputs that do not fit them."""

import pytest
import torch
from torch import Tensor

from fxq.errors import CalibrationError, InputError, RangeError, UnsignedInputError
from fxq.nn import TensorQuantizer
from fxq.quant.affine import fake_tensor_quant
from fxq.quant.descriptor import QuantDescriptor


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def calibrated(descriptor: QuantDescriptor, *batches: Tensor) -> TensorQuantizer:
    quantizer = TensorQuantizer(descriptor, if_quant=False, if_calib=True)
    for batch in batches:
        quantizer(batch)
    quantizer.load_calib_amax()
    quantizer.disable_calib()
    quantizer.enable_quant()
    return quantizer


def test_a_fixed_range_is_never_calibrated() -> None:
    quantizer = calibrated(QuantDescriptor(amax=3.0), data(4))
    assert quantizer.amax == 3.0
    assert quantizer.calibrator is None


def test_a_fixed_affine_range_is_never_calibrated_and_has_its_scale_and_zero_point() -> None:
    descriptor = QuantDescriptor(unsigned=True, symmetric=False, range=(-1.0, 127 / 128))
    quantizer = calibrated(descriptor, data(4))
    assert quantizer.calibrator is None
    assert (float(quantizer.scale), int(quantizer.zero_point)) == (1 / 128, 128)
    scaled = TensorQuantizer(descriptor.replace(scale_amax=2.0))
    assert (float(scaled.scale), int(scaled.zero_point)) == (1 / 64, 128)


def test_scale_amax_multiplies_a_fixed_range_once() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(amax=0.5, scale_amax=0.9))
    x = data(8)
    for _ in range(2):
        assert torch.equal(quantizer(x), fake_tensor_quant(x, torch.tensor(0.5) * 0.9, narrow_range=False))
    quantizer.amax = 0.5
    assert quantizer.amax == 0.5


def test_calibrator_without_data_is_an_error_or_a_warning() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(name="layer1.input"))
    with pytest.raises(CalibrationError, match=r"layer1\.input.*saw no data"):
        quantizer.load_calib_amax()
    with pytest.warns(UserWarning, match=r"layer1\.input"):
        quantizer.load_calib_amax(strict=False)
    assert not quantizer.has_range


def test_infinite_data_names_the_quantizer() -> None:
    with pytest.raises(CalibrationError, match="layer1"):
        calibrated(QuantDescriptor(name="layer1"), torch.tensor([1.0, torch.inf]))


def test_range_can_be_assigned_and_forgotten() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=0))
    quantizer.amax = [[1.0], [2.0]]
    assert quantizer.amax.shape == (2, 1)
    assert torch.equal(quantizer.range[0], -quantizer.amax)
    quantizer.range = (torch.tensor([-3.0, 0.0]), torch.tensor([1.0, 4.0]))
    assert quantizer.amax.tolist() == [3.0, 4.0]
    x = data(2, 5)
    assert torch.equal(quantizer(x), fake_tensor_quant(x, torch.tensor([[3.0], [4.0]]), narrow_range=False))
    quantizer.reset_amax()
    assert quantizer.amax is None
    with pytest.raises(CalibrationError, match="no range"):
        quantizer.scale  # noqa: B018


def test_flat_channels_fit_inputs_of_any_rank() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=-1, amax=(1.0, 2.0, 3.0)))
    for shape in [(3,), (4, 3), (5, 4, 3)]:
        x = data(*shape)
        assert torch.equal(quantizer(x), fake_tensor_quant(x, torch.tensor([1.0, 2.0, 3.0]), narrow_range=False))


@pytest.mark.parametrize(
    ("options", "value", "message"),
    [
        ({}, -1.0, "Negative values in amax"),
        ({}, [1.0, 2.0], "of one value"),
        ({"axis": 0}, torch.ones(2, 3), "axis"),
        ({"axis": 3}, torch.ones(2, 3), "axis"),
        ({}, float("nan"), "not finite"),
        ({"symmetric": False}, 1.0, "affine"),
    ],
    ids=str,
)
def test_ranges_that_cannot_be_are_refused(options, value, message: str) -> None:
    with pytest.raises(RangeError, match=message):
        TensorQuantizer(QuantDescriptor(**options)).amax = value


def test_empty_affine_range_is_refused() -> None:
    with pytest.raises(RangeError, match="empty"):
        TensorQuantizer(QuantDescriptor(symmetric=False)).range = (1.0, -1.0)


def test_inputs_that_do_not_fit_are_refused() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=0, amax=(1.0, 2.0), name="fc.weight"))
    with pytest.raises(RangeError, match=r"fc\.weight.*\(3, 4\)"):
        quantizer(data(3, 4))
    with pytest.raises(RangeError, match=r"fc\.weight"):
        quantizer(torch.tensor(1.0))
    with pytest.raises(InputError, match=r"fc\.weight.*int64"):
        quantizer(torch.arange(3))
    with pytest.raises(RangeError, match="axis 2"):
        TensorQuantizer(QuantDescriptor(axis=2))(data(3, 4))


def test_unsigned_refuses_negative_inputs_until_its_range_is_stored() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(unsigned=True))
    with pytest.raises(UnsignedInputError, match="Negative values"):
        quantizer(torch.tensor([-1.0, 1.0]))
    quantizer.amax = 1.0
    assert quantizer(torch.tensor([-1.0, 1.0])).tolist() == [0.0, 1.0]


def test_scale_inverse_scale_and_zero_point_describe_the_codes() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(amax=2.54, num_bits=8))
    assert quantizer.inverse_scale.item() == pytest.approx(50)
    assert quantizer.scale.item() == pytest.approx(0.02)
    assert (quantizer.zero_point.item(), quantizer.maxbound) == (0, 127)
    affine = TensorQuantizer(QuantDescriptor(symmetric=False, unsigned=True))
    affine.range = (-1.0, 1.55)
    assert affine.scale.item() == pytest.approx(0.01)
    assert affine.inverse_scale.item() == pytest.approx(100)
    assert (affine.zero_point.item(), affine.zero_point.dtype) == (100, torch.int32)
    assert affine.amax.item() == pytest.approx(1.55)


def test_fixed_ranges_need_no_value_of_the_input() -> None:
    # On the meta device a tensor has no values: reading one, which would wait for a GPU, raises.
    for options in ({}, {"axis": 1}, {"symmetric": False}, {"unsigned": True}, {"learn_amax": True}):
        quantizer = calibrated(QuantDescriptor(**options), data(4, 3).abs()).to("meta")
        assert quantizer(torch.empty(4, 3, device="meta")).shape == (4, 3)
