"""State dict, copies, casts and what lowering reads of a TensorQuantizer."""

import copy
import io
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
@pytest.mark.parametrize("is_calibrated", [False, True], ids=["into a new one", "into a calibrated one"])
def test_state_dict_restores_the_range(descriptor: QuantDescriptor, is_calibrated: bool) -> None:
    x = data(2, 3, 4)
    quantizer = calibrated(descriptor, x)
    file = io.BytesIO()
    torch.save(nn.Sequential(quantizer).state_dict(), file)
    file.seek(0)
    other = calibrated(descriptor, x * 3) if is_calibrated else TensorQuantizer(descriptor)
    nn.Sequential(other).load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), quantizer(x))
    assert [name for name, _ in other.named_parameters()] == [name for name, _ in quantizer.named_parameters()]


def test_keys_are_those_of_pytorch_quantization() -> None:
    assert list(calibrated(QuantDescriptor(axis=0), data(3, 4)).state_dict()) == ["_amax"]
    assert list(calibrated(QuantDescriptor(symmetric=False), data(3, 4)).state_dict()) == ["_low", "_high"]
    assert list(TensorQuantizer().state_dict()) == []


def test_loaded_range_is_not_shared_with_the_state_dict() -> None:
    state = {"_amax": torch.tensor(1.0)}
    quantizer = TensorQuantizer()
    quantizer.load_state_dict(state)
    state["_amax"].fill_(9.0)
    assert quantizer.amax == 1.0


def test_half_precision_state_is_loaded_as_float32() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=0))
    quantizer.load_state_dict({"_amax": torch.tensor([[1.0], [2.0]], dtype=torch.float16)}, assign=True)
    assert quantizer.amax.dtype == torch.float32


def test_flat_and_kept_dimensions_are_the_same_range() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=0, amax=(1.0, 2.0)))
    quantizer.load_state_dict({"_amax": torch.tensor([[3.0], [4.0]])})
    assert quantizer.amax.tolist() == [3.0, 4.0]


def test_state_that_does_not_fit_names_the_key() -> None:
    model = nn.Sequential(TensorQuantizer(QuantDescriptor(axis=0)), TensorQuantizer(QuantDescriptor(symmetric=False)))
    with pytest.raises(RuntimeError, match=r"0\._amax has shape \(2, 3\).*axis 0"):
        model.load_state_dict({"0._amax": torch.ones(2, 3)})
    with pytest.raises(RuntimeError, match=r"1\._high is missing"):
        model.load_state_dict({"1._low": torch.tensor(0.0)})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({"1._amax": torch.tensor(0.0)})
    with pytest.raises(RuntimeError, match="Missing key"):
        nn.Sequential(calibrated(QuantDescriptor(), data(3))).load_state_dict({})
    with pytest.raises(RuntimeError, match="size mismatch"):
        calibrated(QuantDescriptor(axis=0), data(3, 2)).load_state_dict({"_amax": torch.ones(4, 1)})


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
    assert params.step.shape == params.zero_point.shape == (() if params.axis is None else (x.shape[params.axis],))
    shape = [-1 if dim == params.axis else 1 for dim in range(3)] if params.axis is not None else []
    step, zero_point = params.step.reshape(shape), params.zero_point.reshape(shape)
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
