"""MaxCalibrator, MinMaxCalibrator and MovingAverageMinMaxCalibrator."""

from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from fxq.calib import Calibrator, HistogramCalibrator, MaxCalibrator, MinMaxCalibrator, MovingAverageMinMaxCalibrator
from fxq.errors import CalibrationError, DescriptorError, RangeError

Kind = TypeVar("Kind", bound=Calibrator)
KINDS = [MaxCalibrator, MinMaxCalibrator, MovingAverageMinMaxCalibrator]


def batches(seed: int, number: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 5, 4, 6, generator=generator) * (index + 1) for index in range(number)]


def observed(calibrator: Kind, data: list[Tensor]) -> Kind:
    for x in data:
        calibrator.observe(x)
    return calibrator


def amax_of(calibrator: Calibrator) -> Tensor:
    return range_of(calibrator)[1]


def range_of(calibrator: Calibrator) -> tuple[Tensor, Tensor]:
    bounds = calibrator.fit()
    assert bounds is not None
    return bounds


def test_max_is_the_largest_magnitude_of_all_batches() -> None:
    data = batches(0)
    amax = amax_of(observed(MaxCalibrator(), data))
    assert amax.shape == ()
    assert amax.dtype == torch.float32
    assert amax == torch.cat(data).abs().max()


@pytest.mark.parametrize(
    ("axis", "shape"),
    [(0, (3, 1, 1, 1)), (1, (1, 5, 1, 1)), (-1, (1, 1, 1, 6)), ((0, 1), (3, 5, 1, 1)), ((0, 1, 2, 3), (3, 5, 4, 6))],
    ids=str,
)
def test_max_per_channel_keeps_the_dimensions_of_the_axis(axis: int | tuple[int, ...], shape: tuple[int, ...]) -> None:
    data = batches(1)
    axes = axis if isinstance(axis, tuple) else (axis,)
    reduced = [dim for dim in range(4) if dim not in {axis % 4 for axis in axes}]
    expected = torch.stack(data).abs().amax(0)
    expected = expected.amax(reduced, keepdim=True) if reduced else expected
    amax = amax_of(observed(MaxCalibrator(axis=axis), data))
    assert amax.shape == shape
    assert torch.equal(amax, expected)


def test_track_amax_keeps_the_amax_of_each_batch() -> None:
    data = batches(2)
    calibrator = MaxCalibrator(track_amax=True)
    observed(calibrator, data)
    assert [float(amax) for amax in calibrator.amaxs] == [float(x.abs().max()) for x in data]
    assert MaxCalibrator().amaxs == []


def test_symmetric_range_is_mirrored_and_unsigned_starts_at_zero() -> None:
    data = batches(3)
    amax = amax_of(observed(MaxCalibrator(), data))
    assert range_of(observed(MaxCalibrator(), data)) == (-amax, amax)
    assert range_of(observed(MaxCalibrator(unsigned=True), data)) == (torch.tensor(0.0), amax)


def test_minmax_gives_the_lowest_and_highest_value() -> None:
    data = [x + 2 for x in batches(4)]
    low, high = range_of(observed(MinMaxCalibrator(), data))
    assert (low, high) == (torch.cat(data).min(), torch.cat(data).max())
    low, high = range_of(observed(MinMaxCalibrator(axis=1), data))
    assert torch.equal(low, torch.cat(data).amin((0, 2, 3), keepdim=True))
    assert torch.equal(high, torch.cat(data).amax((0, 2, 3), keepdim=True))


@pytest.mark.parametrize("axis", [None, 1])
def test_moving_average_follows_torchs_formula(axis: int | None) -> None:
    data = batches(5)
    reduced = (0, 1, 2, 3) if axis is None else (0, 2, 3)
    low, high = data[0].amin(reduced, keepdim=True), data[0].amax(reduced, keepdim=True)
    for x in data[1:]:
        low = low + 0.01 * (x.amin(reduced, keepdim=True) - low)
        high = high + 0.01 * (x.amax(reduced, keepdim=True) - high)
    bounds = range_of(observed(MovingAverageMinMaxCalibrator(axis=axis), data))
    assert torch.equal(bounds[0].flatten(), low.flatten())
    assert torch.equal(bounds[1].flatten(), high.flatten())


def test_averaging_constant_out_of_range_is_refused() -> None:
    with pytest.raises(RangeError, match="averaging_constant must be more than 0"):
        MovingAverageMinMaxCalibrator(averaging_constant=0.0)


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_halves_give_what_one_calibrator_gives(kind: type[MinMaxCalibrator], axis: int | None) -> None:
    data = batches(6, number=7)
    whole = range_of(observed(kind(axis=axis), data))
    first, second, third = (observed(kind(axis=axis), part) for part in (data[:2], data[2:4], data[4:]))
    second.merge(third)
    first.merge(second)
    # The moving average is rearranged algebra: a few float32 roundings; the others are exact.
    tolerance = {"rtol": 1e-6, "atol": 0} if kind is MovingAverageMinMaxCalibrator else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(range_of(first), whole, **tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_merge_with_an_empty_calibrator_changes_nothing(kind: type[MinMaxCalibrator]) -> None:
    data = batches(7)
    calibrator, empty = observed(kind(), data), kind()
    calibrator.merge(empty)
    empty.merge(calibrator)
    assert range_of(calibrator) == range_of(empty) == range_of(observed(kind(), data))
    empty.observe(data[0])
    calibrator.observe(data[0])
    assert range_of(calibrator) == range_of(empty)


def test_merge_keeps_the_tracked_amaxs() -> None:
    data = batches(8)
    first, second = MaxCalibrator(track_amax=True), MaxCalibrator(track_amax=True)
    observed(first, data[:2])
    observed(second, data[2:])
    first.merge(second)
    assert [float(amax) for amax in first.amaxs] == [float(x.abs().max()) for x in data]


def test_calibrators_that_differ_do_not_merge() -> None:
    with pytest.raises(CalibrationError, match="num_bits=8 and num_bits=4"):
        MaxCalibrator().merge(MaxCalibrator(num_bits=4))
    with pytest.raises(CalibrationError, match=r"cannot merge a fxq\.\S+MinMaxCalibrator into a fxq\.\S+MaxC"):
        MaxCalibrator().merge(MinMaxCalibrator())  # type: ignore[arg-type]  # the mistake under test
    first, second = MaxCalibrator(axis=0), MaxCalibrator(axis=0)
    first.observe(torch.ones(2, 3))
    second.observe(torch.ones(3, 3))
    with pytest.raises(CalibrationError, match="cannot merge ranges of shape"):
        first.merge(second)


@pytest.mark.parametrize("kind", [*KINDS, HistogramCalibrator])
def test_nothing_observed_gives_none(kind: type[Calibrator]) -> None:
    calibrator = kind()
    assert calibrator.fit() is None
    calibrator.observe(torch.empty(0, 3))
    assert calibrator.fit() is None
    assert "saw nothing" in repr(calibrator)
    calibrator.observe(torch.tensor([-1.0, 2.0]))
    assert calibrator.fit() is not None
    assert "saw -1 to 2" in repr(calibrator)
    calibrator.reset()
    assert calibrator.fit() is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("value", "seen"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (-float("inf"), "infinity")]
)
def test_nan_and_infinity_are_named_when_the_range_is_fitted(kind: type[Calibrator], value: float, seen: str) -> None:
    calibrator = kind()
    calibrator.observe(torch.tensor([1.0, value, 2.0]))
    calibrator.observe(torch.tensor([1.0, 2.0]))
    seen = "NaN or infinity" if kind is MovingAverageMinMaxCalibrator else seen
    with pytest.raises(CalibrationError, match=f"the tensor holds {seen}, so it has no range"):
        calibrator.fit()


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_a_histogram_method_names_the_calibrator_that_can(method: str) -> None:
    with pytest.raises(CalibrationError, match=f"MaxCalibrator cannot fit by '{method}'.*use HistogramCalibrator"):
        observed(MaxCalibrator(), batches(9)).fit(method)
    with pytest.raises(CalibrationError, match="MaxCalibrator has no option percentile"):
        observed(MaxCalibrator(), batches(9)).fit(percentile=99.0)


def test_a_shape_that_changes_along_the_axis_is_an_error() -> None:
    calibrator = MaxCalibrator(axis=0)
    calibrator.observe(torch.ones(2, 3))
    with pytest.raises(CalibrationError, match=r"amax shape changed from \(2, 1\) to \(3, 1\)"):
        calibrator.observe(torch.ones(3, 3))
    with pytest.raises(DescriptorError, match="out of range for a tensor of shape"):
        MaxCalibrator(axis=2).observe(torch.ones(3, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_give_a_float32_range(dtype: torch.dtype) -> None:
    x = batches(10)[0].to(dtype)
    amax = amax_of(observed(MaxCalibrator(axis=1), [x]))
    assert amax.dtype == torch.float32
    assert torch.equal(amax, x.float().abs().amax((0, 2, 3), keepdim=True))


def test_memory_order_does_not_matter() -> None:
    x = batches(11)[0]
    for view in (x.to(memory_format=torch.channels_last), x.transpose(0, 3), x[:, ::2], x[:1].expand(4, -1, -1, -1)):
        assert amax_of(observed(MaxCalibrator(), [view])) == view.abs().max()
    assert amax_of(observed(MaxCalibrator(), [torch.tensor(-3.0)])) == 3


def test_a_range_made_under_inference_mode_can_be_trained_with() -> None:
    for calibrator in (MaxCalibrator(), HistogramCalibrator()):
        with torch.inference_mode():
            calibrator.observe(torch.tensor([1.0, -2.0]))
        calibrator.observe(torch.tensor([1.0, -3.0], requires_grad=True))
        amax = nn.Parameter(amax_of(calibrator))
        torch.autograd.backward(amax * amax)
        assert not amax_of(calibrator).requires_grad
        assert amax.grad is not None


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(DescriptorError, match="num_bits must be from 2 to 16"):
        MaxCalibrator(num_bits=1)
    with pytest.raises(DescriptorError, match="axis must be"):
        MaxCalibrator(axis="channel")  # type: ignore[arg-type]  # the mistake under test


def test_the_names_of_pytorch_quantization_do_the_same() -> None:
    x = torch.tensor([-3.0, 1.0, 2.0])
    for calibrator in (MaxCalibrator(), MinMaxCalibrator()):
        calibrator.collect(x)
        assert float(calibrator.compute_amax("max")) == 3
