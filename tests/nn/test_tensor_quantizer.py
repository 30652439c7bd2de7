"""TensorQuantizer: its switches, calibration and numbers."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import CalibrationError
from fxq.nn import TensorQuantizer
from fxq.quant.affine import affine_params, fake_affine_quant, fake_tensor_quant, tensor_quant
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


def test_dynamic_range_is_that_of_each_input() -> None:
    quantizer = TensorQuantizer()
    for seed in range(2):
        x = data(4, 5, seed=seed)
        assert torch.equal(quantizer(x), fake_tensor_quant(x, x.abs().max(), narrow_range=False))
    assert not quantizer.has_range


@pytest.mark.parametrize(("axis", "reduced"), [(0, (1, 2)), (-1, (0, 1)), ((0, 2), (1,)), ((0, 1, 2), ())], ids=str)
def test_axis_names_the_dimensions_that_keep_their_range(axis, reduced) -> None:
    x = data(3, 4, 5)
    amax = x.abs().amax(reduced, keepdim=True) if reduced else x.abs()
    expected = fake_tensor_quant(x, amax, narrow_range=False)
    descriptor = QuantDescriptor(axis=axis)
    assert torch.equal(TensorQuantizer(descriptor)(x), expected)
    assert torch.equal(calibrated(descriptor, x)(x), expected)


@pytest.mark.parametrize(
    "options",
    [{"num_bits": 4}, {"unsigned": True}, {"narrow_range": True}, {"num_bits": 16}, {"axis": 1}],
    ids=str,
)
def test_stored_range_quantizes_like_the_function(options) -> None:
    x, later = data(4, 3, 5).abs(), data(4, 3, 5, seed=1).abs() * 2
    descriptor = QuantDescriptor(**options)
    quantizer = calibrated(descriptor, x)
    format_of = {"narrow_range": False} | {key: value for key, value in options.items() if key != "axis"}
    assert torch.equal(quantizer(later), fake_tensor_quant(later, quantizer.amax, **format_of))


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("unsigned", [False, True])
def test_affine_range_quantizes_like_the_function(axis: int | None, unsigned: bool) -> None:
    x, later = data(4, 3, 5) + 1, data(4, 3, 5, seed=1) * 2
    quantizer = calibrated(QuantDescriptor(axis=axis, symmetric=False, unsigned=unsigned), x)
    low, high = (x.amin((0, 2), keepdim=True), x.amax((0, 2), keepdim=True)) if axis else (x.min(), x.max())
    bounds = quantizer.descriptor.bounds
    expected = fake_affine_quant(later, *affine_params(low, high, *bounds), *bounds)
    assert torch.equal(quantizer(later), expected)
    assert torch.equal(TensorQuantizer(quantizer.descriptor)(x), quantizer(x))
    assert torch.equal(quantizer(torch.zeros(1, 3, 1)), torch.zeros(1, 3, 1))


def test_the_guide_of_pytorch_quantization_gets_integer_codes() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(num_bits=4, fake_quant=False, axis=0, unsigned=True))
    x = torch.rand(10, 9, 8, 7, generator=torch.Generator().manual_seed(12345))
    expected, _ = tensor_quant(x, x.amax((1, 2, 3), keepdim=True), 4, unsigned=True, narrow_range=False)
    codes = quantizer(x)
    assert torch.equal(codes, expected)
    assert (codes.dtype, codes.min(), codes.max()) == (torch.float32, 0, 15)


def test_affine_integer_codes() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(symmetric=False, unsigned=True, fake_quant=False))
    quantizer.range = (0.0, 2.55)
    assert quantizer(torch.tensor([-1.0, 0.0, 1.0, 9.0])).tolist() == [0, 0, 100, 255]


def test_disabled_quantizer_returns_the_same_tensor_and_observes_nothing() -> None:
    quantizer = TensorQuantizer(disabled=True, if_calib=True)
    x = data(4)
    assert quantizer(x) is x
    quantizer.enable()
    assert quantizer.is_enabled
    with pytest.raises(CalibrationError, match="saw no data"):
        quantizer.load_calib_amax()
    quantizer.disable()
    assert quantizer(x) is x


def test_switches_act_alone() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(amax=1.0))
    x = torch.tensor([-2.0, 0.3, 2.0])
    quantizer.disable_quant()
    assert quantizer(x) is x
    quantizer.enable_clip()
    assert quantizer(x).tolist() == [-1.0, pytest.approx(0.3), 1.0]
    quantizer.disable_clip()
    quantizer.enable_quant()
    assert torch.equal(quantizer(x), fake_tensor_quant(x, 1.0, narrow_range=False))
    switches = (quantizer.is_quant_enabled, quantizer.is_clip_enabled, quantizer.is_calib_enabled)
    assert switches == (True, False, False)


def test_calibration_sees_every_batch_and_scale_amax_multiplies() -> None:
    batches = [data(8, seed=seed) for seed in range(3)]
    largest = max(batch.abs().max() for batch in batches)
    quantizer = calibrated(QuantDescriptor(scale_amax=0.5), *batches)
    assert quantizer.amax == largest * 0.5
    x = batches[0]
    dynamic = TensorQuantizer(QuantDescriptor(scale_amax=0.5))
    assert torch.equal(dynamic(x), fake_tensor_quant(x, x.abs().max() * 0.5, narrow_range=False))


@pytest.mark.parametrize("calibrator", ["histogram", "percentile", "mse", "entropy", "minmax", "moving_average"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_calibrator_of_a_descriptor_gives_a_range(calibrator: str, symmetric: bool) -> None:
    x = data(20_000)
    quantizer = calibrated(QuantDescriptor(calibrator=calibrator, symmetric=symmetric), x)
    # Normal data: nothing sensible clips below two sigma.
    assert 2 < quantizer.amax <= x.abs().max() * 1.001  # a histogram ends on a bin edge


def test_named_method_is_the_default_and_arguments_reach_the_calibrator() -> None:
    x = data(20_000)
    quantizer = calibrated(QuantDescriptor(calibrator="percentile"), x)
    wide = quantizer.amax
    quantizer.load_calib_amax(percentile=90.0)
    assert quantizer.amax < wide
    quantizer.load_calib_amax("max")
    assert quantizer.amax >= wide


@pytest.mark.parametrize("options", [{}, {"axis": 1}, {"symmetric": False}, {"learn_amax": True}], ids=str)
def test_empty_inputs_stay_empty(options) -> None:
    quantizer = TensorQuantizer(QuantDescriptor(**options))
    assert quantizer(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_other_dtypes_are_computed_in_float32(dtype: torch.dtype, symmetric: bool) -> None:
    x = data(64).to(dtype)
    quantizer = TensorQuantizer(QuantDescriptor(symmetric=symmetric))
    quantized = quantizer(x)
    assert quantized.dtype == dtype
    assert torch.equal(quantized, quantizer(x.float()).to(dtype))


class Scaled(nn.Module):
    """A quantized parameter and a quantized activation."""

    def __init__(self, descriptor: QuantDescriptor) -> None:
        super().__init__()
        self.weight = nn.Parameter(data(3, 5))
        self.activation, self.parameter = TensorQuantizer(descriptor), TensorQuantizer(descriptor)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x) * self.parameter(self.weight)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"axis": 0}, {"symmetric": False}, {"learn_amax": True}, {"fake_quant": False}], ids=str
)
def test_calibrated_module_exports(options, strict: bool) -> None:
    model = Scaled(QuantDescriptor(**options)).eval()
    x = data(3, 5, seed=1)
    for quantizer, seen in ((model.activation, x), (model.parameter, model.weight)):
        quantizer.enable_calib()
        quantizer(seen)
        quantizer.load_calib_amax()
        quantizer.disable_calib()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own deprecations; what counts here is the result
        exported = torch.export.export(model, (x,), strict=strict).module()
    assert torch.equal(exported(x), model(x))
