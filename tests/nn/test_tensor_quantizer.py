"""TensorQuantizer: its switches, ranges and numbers."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import CalibrationError, InputError, RangeError, UnsignedInputError
from fxq.nn import TensorQuantizer
from fxq.quant.affine import affine_params, fake_affine_quant, fake_tensor_quant, tensor_quant
from fxq.quant.descriptor import QuantDescriptor
from fxq.quant.learned import learned_fake_quant


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


def test_a_fixed_range_is_never_calibrated() -> None:
    quantizer = calibrated(QuantDescriptor(amax=3.0), data(4))
    assert quantizer.amax == 3.0
    assert quantizer.calibrator is None


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


def test_gradient_of_the_input_is_straight_through() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(amax=1.0))
    x = torch.tensor([-1.5, -1.0, 0.2, 1.0, 1.5], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_dynamic_range_takes_no_gradient() -> None:
    x = data(10).requires_grad_()
    TensorQuantizer()(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(10))


@pytest.mark.parametrize("axis", [None, 1])
def test_learned_range_is_a_parameter_from_calibration_on(axis: int | None) -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=axis, learn_amax=True, num_bits=4))
    assert list(quantizer.parameters()) == []
    x = data(4, 3, 5)
    quantizer.enable_calib()
    quantizer(x)
    quantizer.load_calib_amax()
    (amax,) = quantizer.parameters()
    by_hand = amax.detach().clone().requires_grad_()
    assert torch.equal(quantizer(x), learned_fake_quant(x, by_hand, (-8, 7)))
    quantizer(x).square().sum().backward()
    learned_fake_quant(x, by_hand, (-8, 7)).square().sum().backward()
    assert torch.equal(amax.grad, by_hand.grad)


def test_learned_parameter_keeps_its_identity_when_assigned() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(learn_amax=True, amax=1.0))
    (before,) = quantizer.parameters()
    quantizer.amax = 2.0
    (after,) = quantizer.parameters()
    assert after is before
    assert after.item() == 2.0


def test_learned_range_with_clip_gets_the_gradient_of_what_is_clipped() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(learn_amax=True, amax=1.0), if_clip=True)
    x = torch.tensor([-3.0, 0.4, 2.0, 5.0], requires_grad=True)
    quantizer(x).backward(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    assert next(quantizer.parameters()).grad.item() == 1100 - 1
    assert x.grad.tolist() == [0, 10, 0, 0]


def test_scale_step_and_zero_point_describe_the_codes() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(amax=2.54, num_bits=8))
    assert quantizer.scale.item() == pytest.approx(50)
    assert quantizer.step_size.item() == pytest.approx(0.02)
    assert (quantizer.zero_point.item(), quantizer.maxbound) == (0, 127)
    affine = TensorQuantizer(QuantDescriptor(symmetric=False, unsigned=True))
    affine.range = (-1.0, 1.55)
    assert affine.step_size.item() == pytest.approx(0.01)
    assert affine.scale.item() == pytest.approx(100)
    assert (affine.zero_point.item(), affine.zero_point.dtype) == (100, torch.int32)
    assert affine.amax.item() == pytest.approx(1.55)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "8bit fake per-tensor dynamic calibrator=MaxCalibrator quant"),
        ({"amax": 2.64}, "8bit fake per-tensor amax=2.6400 quant"),
        ({"axis": 0, "amax": (0.0, 0.5, 0.7817)}, "8bit fake axis=0 amax=[0.0000, 0.7817](3) quant"),
        (
            {"num_bits": 4, "unsigned": True, "fake_quant": False, "scale_amax": 1.5},
            "unsigned 4bit integer per-tensor dynamic scale_amax=1.5 calibrator=MaxCalibrator quant",
        ),
        (
            {"narrow_range": True, "learn_amax": True, "amax": 1.0},
            "8bit narrow fake per-tensor amax=1.0000 learned calibrator=MaxCalibrator quant",
        ),
    ],
    ids=["dynamic", "fixed", "channels", "unsigned", "learned"],
)
def test_printing_says_how_it_quantizes(options, text: str) -> None:
    assert repr(TensorQuantizer(QuantDescriptor(**options))) == f"TensorQuantizer({text})"


def test_printing_says_what_is_switched_and_affine_ranges() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(symmetric=False, calibrator="histogram"), if_clip=True, if_calib=True)
    quantizer.range = (-1.0, 2.0)
    expected = "8bit affine fake per-tensor range=[-1.0000, 2.0000] calibrator=HistogramCalibrator clip quant calib"
    assert quantizer.extra_repr() == expected
    quantizer.disable()
    assert quantizer.extra_repr().endswith("HistogramCalibrator disabled")


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


def test_fixed_ranges_need_no_value_of_the_input() -> None:
    # On the meta device a tensor has no values: reading one, which would wait for a GPU, raises.
    for options in ({}, {"axis": 1}, {"symmetric": False}, {"unsigned": True}, {"learn_amax": True}):
        quantizer = calibrated(QuantDescriptor(**options), data(4, 3).abs()).to("meta")
        assert quantizer(torch.empty(4, 3, device="meta")).shape == (4, 3)
