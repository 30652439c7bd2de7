"""What calibrate and fit_ranges refuse: the batch or quantizer is named, and no range or switch has changed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.small import images, residual, snapshot
from torch import Tensor
from torch.fx import GraphModule

import fxq


@pytest.fixture(scope="module")
def shared_prepared() -> GraphModule:
    """A prepared model that no test changes for good."""
    return fxq.prepare(residual(), images(2))


@pytest.fixture
def prepared() -> GraphModule:
    return fxq.prepare(residual(), images(2))


def used_up() -> Iterator[Tensor]:
    batches = iter([images(2)])
    next(batches)
    return batches


REFUSED_BATCHES: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    "none": (list, fxq.CalibrationError, ["no batch", "empty"]),
    "used-up iterator": (used_up, fxq.CalibrationError, ["no batch", "iterator was used up"]),
    "not iterable": (lambda: 3, fxq.InputError, ["iterable", "got int"]),
    "wrong shape": (
        lambda: [images(2), torch.randn(2, 3, 8, 8)],
        fxq.InputError,
        ["batch 1", "tensor (2, 3, 8, 8) float32", "inputs are x", "3 channels", "forward=lambda"],
    ),
    "too many inputs": (lambda: [(images(2),) * 3], fxq.InputError, ["takes 1 inputs", "has 3"]),
    "wrong keyword": (lambda: [{"image": images(2)}], fxq.InputError, ["'image'", "inputs are x"]),
    "text": (lambda: ["image.png"], fxq.InputError, ["batch 0", "str", "forward=lambda"]),
    "integers": (lambda: [images(2).long()], fxq.InputError, ["batch 0", "conv1_input_quantizer", "torch.int64"]),
    "NaN": (
        lambda: [images(2), images(2) * float("nan")],
        fxq.CalibrationError,
        ["batch 1", "quantizer 'conv1_input_quantizer'", "NaN"],
    ),
    "infinity": (
        lambda: [images(2) / 0],
        fxq.CalibrationError,
        ["batch 0", "quantizer 'conv1_input_quantizer'", "infinity", "layer before it"],
    ),
}


@pytest.mark.parametrize(("batches", "error", "words"), REFUSED_BATCHES.values(), ids=REFUSED_BATCHES.keys())
def test_a_refused_batch_is_named_and_leaves_the_prepared_model_as_it_was(
    shared_prepared: GraphModule, batches: Callable[[], Any], error: type[Exception], words: list[str]
) -> None:
    shared_prepared.train()
    before, shown = snapshot(shared_prepared), str(shared_prepared)  # the text holds ranges and switches
    with pytest.raises(error) as raised:
        fxq.calibrate(shared_prepared, batches())
    assert isinstance(raised.value, fxq.FxqError)
    assert [word for word in words if word not in str(raised.value)] == []
    assert snapshot(shared_prepared) == before
    assert str(shared_prepared) == shown


def test_the_first_quantizer_that_saw_nan_is_named() -> None:
    model = residual()
    model.conv1.weight.data[1] = float("inf")
    with pytest.raises(fxq.CalibrationError, match=r"batch 0.*quantizer 'conv2_input_quantizer'.*NaN"):
        fxq.calibrate(fxq.prepare(model), [images(2)])


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = residual()
    model.fc.weight.data[1] = float("nan")
    with pytest.raises(fxq.CalibrationError, match=r"weight of 'fc'.*NaN or infinity.*in float"):
        fxq.calibrate(fxq.prepare(model), [images(2)])


def test_an_error_of_the_loader_itself_passes_through(prepared: GraphModule) -> None:
    def loader() -> Iterator[Tensor]:
        yield images(2)
        raise OSError("disk on fire")

    shown = str(prepared)
    with pytest.raises(OSError, match="disk on fire"):
        fxq.calibrate(prepared, loader())
    assert str(prepared) == shown


@pytest.mark.parametrize(
    ("forward", "error", "words"),
    [
        (lambda model, batch: model(batch["image"]), fxq.InputError, "batch 0 .dict of pixels.*'image'"),
        (lambda model, batch: None, fxq.CalibrationError, "no quantizer has seen data.*forward="),
    ],
    ids=["reads a key that is not there", "does not call the model"],
)
def test_a_wrong_forward_is_named(
    prepared: GraphModule, forward: Callable[..., Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        fxq.calibrate(prepared, [{"pixels": images(2)}], forward=forward)


def test_fit_ranges_before_calibrate_says_what_comes_first(shared_prepared: GraphModule) -> None:
    with pytest.raises(fxq.CalibrationError, match=r"run fxq\.calibrate\(prepared, batches\) first"):
        fxq.fit_ranges(shared_prepared, "percentile")


def test_fit_ranges_needs_histograms_for_all_but_the_maximum() -> None:
    prepared = fxq.prepare(residual(), recipe=fxq.recipe("tensorrt").replace(calibrator="max"))
    fxq.calibrate(prepared, [images(2)])
    fxq.fit_ranges(prepared, "max")
    with pytest.raises(fxq.CalibrationError, match=r"histograms.*conv1_input_quantizer.*calibrator='histogram'"):
        fxq.fit_ranges(prepared, "percentile")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "kl"}, "'kl'.*entropy, max, mse, percentile"),
        ({"method": "percentile", "percentile": 101}, "from 0 to 100"),
        ({"method": "mse", "step": 2}, "'step'.*stride, start_bin"),
    ],
    ids=["unknown method", "percentile out of range", "unknown option"],
)
def test_fit_ranges_refuses_and_keeps_the_ranges(prepared: GraphModule, options: dict[str, Any], words: str) -> None:
    fxq.calibrate(prepared, [images(2)])
    shown = str(prepared)
    with pytest.raises(fxq.FxqError, match=words):
        fxq.fit_ranges(prepared, **options)
    assert str(prepared) == shown
