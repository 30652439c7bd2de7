"""State: what a calibrator is as tensors, and which tensors are refused."""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from fxq.calib import Calibrator, HistogramCalibrator, MaxCalibrator, MinMaxCalibrator, MovingAverageMinMaxCalibrator
from fxq.compat.pytorch_quantization import calib as compat
from fxq.errors import CalibrationError

KINDS: dict[str, Callable[[], Calibrator]] = {
    "max": lambda: MaxCalibrator(unsigned=True, track_amax=True),
    "max per channel": lambda: MaxCalibrator(num_bits=4, axis=-1),
    "max over blocks": lambda: MaxCalibrator(num_bits=4, axis=0, block_size=16),
    "minmax over two axes": lambda: MinMaxCalibrator(axis=(0, 1)),
    "float8": lambda: HistogramCalibrator(num_bits=(4, 3), num_bins=500, skip_zeros=True),
    "affine histogram": lambda: HistogramCalibrator(unsigned=True, symmetric=False),
    "moving average": lambda: MovingAverageMinMaxCalibrator(averaging_constant=0.3),
    "max of fxq.compat": lambda: compat.MaxCalibrator(8, 0, True, track_amax=True),
    "histogram of fxq.compat": lambda: compat.HistogramCalibrator(
        7, None, True, 300, skip_zeros=True, torch_hist=False
    ),
}


def batches(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.relu(torch.randn(4, 20, generator=generator)) * scale for scale in (1, 3, 2)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seen", [0, 1, 2])
def test_a_calibrator_goes_on_from_its_stored_state_as_the_original_does(kind: str, seen: int) -> None:
    original = KINDS[kind]()
    for x in batches(0)[:seen]:
        original.observe(x)
    restored = type(original).from_state(load(save(original.state())))
    assert repr(restored) == repr(original)
    for calibrator in (original, restored):
        for x in batches(1):
            calibrator.observe(x)
    for found, expected in zip(restored.fit() or (), original.fit() or (), strict=True):
        assert torch.equal(found, expected)
    assert restored.fit() is not None
    for name, tensor in original.state().items():
        assert torch.equal(restored.state()[name], tensor)


def test_a_state_is_plain_tensors_that_share_no_memory_with_the_calibrator() -> None:
    calibrator = HistogramCalibrator()
    calibrator.observe(torch.tensor([-1.0, 2.0]))
    state = calibrator.state()
    assert {type(tensor) for tensor in state.values()} == {Tensor}
    assert (state["low"], state["high"], state["counts"].sum()) == (-1, 2, 2)
    restored = HistogramCalibrator.from_state(state)
    for tensor in state.values():
        tensor.zero_()
    assert calibrator.fit("max") == restored.fit("max") == (-2, 2)


def test_a_state_of_other_options_is_refused_by_name() -> None:
    state = HistogramCalibrator(num_bins=100).state()
    assert HistogramCalibrator.from_state(state, num_bins=100).num_bins == 100
    with pytest.raises(CalibrationError, match="a HistogramCalibrator with num_bins=100, and num_bins=2048 was asked"):
        HistogramCalibrator.from_state(state, num_bins=2048)
    with pytest.raises(CalibrationError, match="track_amax=no such option, and track_amax=True was asked"):
        HistogramCalibrator.from_state(state, track_amax=True)


def test_a_state_of_another_kind_is_refused() -> None:
    with pytest.raises(CalibrationError, match="the state of a MaxCalibrator lacks block_size, track_amax: pass what"):
        MaxCalibrator.from_state(MinMaxCalibrator().state())
    with pytest.raises(CalibrationError, match="a MinMaxCalibrator has unknown block_size, track_amax"):
        MinMaxCalibrator.from_state(MaxCalibrator().state())


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("affine histogram", {"counts": None}, "HistogramCalibrator lacks counts"),
        ("affine histogram", {"edges": torch.ones(3)}, "HistogramCalibrator has unknown edges"),
        ("affine histogram", {"counts": [1, 2]}, "'counts' of the state of a HistogramCalibrator is a list, no tensor"),
        (
            "affine histogram",
            {"counts": torch.ones(3, dtype=torch.int64)},
            r"'counts'.*int64 of shape \(3,\), expected",
        ),
        ("affine histogram", {"counts": torch.ones(2048)}, "'counts'.*float32 of shape.*expected torch.int64"),
        ("affine histogram", {"low": torch.zeros(1)}, r"'low'.*shape \(1,\), expected torch.float32 of shape \(\)"),
        ("affine histogram", {"low": torch.tensor(9.0)}, "'low' and 'high'.*that is no range"),
        ("affine histogram", {"high": torch.tensor(torch.nan)}, "'low' and 'high'.*that is no range"),
        (
            "affine histogram",
            {"option.num_bins": torch.ones(3)},
            "options that no HistogramCalibrator has: num_bins must",
        ),
        ("affine histogram", {"option.skip_zeros": torch.ones(())}, "skip_zeros must be True or False, got 1.0"),
        ("float8", {"low": torch.zeros(2)}, "'low'"),
        ("max", {"low": torch.zeros(3), "high": torch.zeros(3)}, r"'low'.*expected torch.float32 of shape \(\)"),
        ("max", {"amaxs": torch.zeros(3, 2)}, r"'amaxs'.*expected torch.float32 of shape \(3,\)"),
        ("max per channel", {"high": torch.zeros(1, 3)}, "'high'"),
        ("moving average", {"first_low": torch.zeros(2)}, "'first_low'"),
        ("moving average", {"batches": torch.tensor(1.5)}, "'batches'.*expected torch.int64"),
        ("histogram of fxq.compat", {"width": torch.zeros(2)}, "'width'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_state_that_does_not_fit_is_refused_by_the_name_of_its_entry(
    kind: str, changes: dict[str, Tensor | None], message: str
) -> None:
    calibrator = KINDS[kind]()
    calibrator.observe(batches(2)[0])
    state = calibrator.state() | changes
    with pytest.raises(CalibrationError, match=message):
        type(calibrator).from_state({name: tensor for name, tensor in state.items() if tensor is not None})
