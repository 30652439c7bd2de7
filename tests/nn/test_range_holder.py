"""Copies, casts and what lowering reads of a TensorQuantizer."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import CalibrationError, TargetError
from fxq.nn import TensorQuantizer
from fxq.quant.affine import affine_dequant, affine_quant
from fxq.quant.descriptor import QuantDescriptor

DESCRIPTORS = [
    pytest.param(QuantDescriptor(), id="per-tensor"),
    pytest.param(QuantDescriptor(axis=1), id="per-channel"),
    pytest.param(QuantDescriptor(axis=(0, 1)), id="two axes"),
    pytest.param(QuantDescriptor(symmetric=False, unsigned=True), id="affine"),
    pytest.param(QuantDescriptor(symmetric=False, axis=-1), id="affine per-channel"),
    pytest.param(QuantDescriptor(axis=1, learn_amax=True), id="learned"),
]


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def calibrated(descriptor: QuantDescriptor, x: Tensor) -> TensorQuantizer:
    quantizer = TensorQuantizer(descriptor, if_calib=True)
    quantizer(x)
    quantizer.load_calib_amax()
    quantizer.disable_calib()
    return quantizer


@pytest.mark.parametrize("descriptor", DESCRIPTORS)
def test_copies_and_pickles_compute_the_same_and_share_nothing(descriptor: QuantDescriptor) -> None:
    x = data(2, 3, 4)
    quantizer = calibrated(descriptor, x)
    expected = quantizer(x)
    for twin in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(twin(x), expected)
        twin.reset_amax()
        twin.calibrator.reset()
    assert torch.equal(quantizer(x), expected)


@pytest.mark.parametrize("descriptor", DESCRIPTORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_casting_a_model_keeps_the_range_in_float32(descriptor: QuantDescriptor, dtype: torch.dtype) -> None:
    quantizer = calibrated(descriptor, data(2, 3, 4))
    before = [bound.detach().clone() for bound in quantizer.range]
    nn.Sequential(nn.Linear(2, 2), quantizer).to(dtype)
    assert all(torch.equal(now, then) for now, then in zip(quantizer.range, before, strict=True))
    assert quantizer.range[1].dtype == torch.float32


def test_range_follows_the_input_to_its_device() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(amax=1.0))
    assert quantizer(torch.empty(3, device="meta")).device.type == "meta"


@pytest.mark.parametrize("descriptor", DESCRIPTORS)
def test_qparams_compute_what_the_quantizer_computes(descriptor: QuantDescriptor) -> None:
    x = data(2, 3, 4)
    quantizer = calibrated(descriptor, x)
    if len(descriptor.axes) > 1:
        with pytest.raises(TargetError, match="one axis"):
            quantizer.qparams()
        return
    params = quantizer.qparams()
    assert params.scale.shape == params.zero_point.shape == (() if params.axis is None else (x.shape[params.axis],))
    shape = [-1 if dim == params.axis else 1 for dim in range(3)] if params.axis is not None else []
    step, zero_point = params.scale.reshape(shape), params.zero_point.reshape(shape)
    codes = affine_quant(x, step, zero_point, params.lo, params.hi)
    assert torch.equal(codes, codes.to(params.dtype).float())
    # x / step and x * scale differ by a code only where x * scale is a tie but for float32 rounding
    torch.testing.assert_close(affine_dequant(codes, step, zero_point), quantizer(x).detach())


@pytest.mark.parametrize(
    ("bits", "unsigned", "dtype"),
    [
        (4, False, torch.int8),
        (8, False, torch.int8),
        (8, True, torch.uint8),
        (9, False, torch.int16),
        (16, True, torch.uint16),
    ],
)
def test_qparams_name_the_smallest_integer_dtype(bits: int, unsigned: bool, dtype: torch.dtype) -> None:
    params = TensorQuantizer(QuantDescriptor(num_bits=bits, unsigned=unsigned, amax=1.0)).qparams()
    assert params.dtype == dtype
    assert (params.lo, params.hi) == QuantDescriptor(num_bits=bits, unsigned=unsigned).bounds


def test_qparams_count_a_negative_axis_from_the_front_once_the_rank_is_known() -> None:
    assert calibrated(QuantDescriptor(axis=-1), data(2, 3, 4)).qparams().axis == 2
    assert TensorQuantizer(QuantDescriptor(axis=-1, amax=(1.0, 2.0))).qparams().axis == -1
    assert TensorQuantizer(QuantDescriptor(axis=0, amax=1.0)).qparams().axis is None


def test_qparams_need_a_range() -> None:
    with pytest.raises(CalibrationError, match="no range"):
        TensorQuantizer().qparams()


def test_range_made_under_inference_mode_can_be_trained_with() -> None:
    x = data(2, 3)
    with torch.inference_mode():
        quantizer = calibrated(QuantDescriptor(learn_amax=True), x)
    quantizer(x.requires_grad_()).sum().backward()
    assert x.grad is not None
