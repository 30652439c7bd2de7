"""Calibration data of another scale than the model was trained on: the batch norms know, and fxq says so."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import fxq

_MEAN, _STD = 0.45, 0.22


@pytest.fixture
def model() -> nn.Module:
    """A small network whose batch norms have seen normalized images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    with torch.no_grad():
        for step in range(60):
            model(_normalized(_images(8, seed=step)))
    return model.eval()


def _images(count: int, seed: int = 99) -> Tensor:
    """Return images with values in [0, 1], each of a brightness of its own."""
    generator = torch.Generator().manual_seed(seed)
    shade = torch.rand(count, 3, 1, 1, generator=generator)
    return (0.5 * shade + 0.5 * torch.rand(count, 3, 12, 12, generator=generator)).clamp(0, 1)


def _normalized(images: Tensor) -> Tensor:
    return (images - _MEAN) / _STD


def _said(model: nn.Module, batch: Tensor) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fxq.quantize(model, [batch], progress=False, min_sqnr_db=-100)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("batch", "figures"),
    [
        (_images(8), "0.24 times the standard deviation"),
        (255 * _images(8), "times the standard deviation"),
        (255 * _images(1), "times the standard deviation"),
        (_normalized(_normalized(_images(8))), "4.9 times the standard deviation"),
        (_normalized(_images(8)) + 20, "medians over 8 channels"),
    ],
    ids=["not normalized", "bytes", "one image of bytes", "normalized twice", "shifted"],
)
def test_data_of_another_scale_is_named(model: nn.Module, batch: Tensor, figures: str) -> None:
    """The float model on the same data errs alike: no comparison shows it."""
    (said,) = _said(model, batch)
    assert "the calibration data is not like what the model was trained on" in said
    assert "the batch norm '1'" in said
    assert figures in said
    assert "mean and standard deviation" in said


@pytest.mark.parametrize("count", [1, 8])
def test_data_like_that_of_training_is_not(model: nn.Module, count: int) -> None:
    assert not _said(model, _normalized(_images(count)))


def test_one_image_may_have_little_contrast(model: nn.Module) -> None:
    """A photo of the sky is no sign of a wrong scale; several are."""
    sky = _normalized(0.45 + 0.02 * torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(3)))
    assert not _said(model, sky)
    assert _said(model, sky.expand(8, -1, -1, -1).clone())


def test_batch_norms_that_learned_nothing_are_no_witnesses() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    assert not _said(model, 255 * _images(8))


def test_a_few_steps_of_training_leave_no_statistics_to_go_by(model: nn.Module) -> None:
    model[1].num_batches_tracked.fill_(5)  # type: ignore[operator,union-attr]
    model[4].num_batches_tracked.fill_(5)  # type: ignore[operator,union-attr]
    assert not _said(model, 255 * _images(8))


def test_example_inputs_are_no_calibration_data(model: nn.Module) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fxq.convert(fxq.prepare(model, 255 * _images(2), recipe="weight_only"))
    assert not [one for one in caught if "not like what the model was trained on" in str(one.message)]


def test_the_users_model_has_no_hooks_afterwards(model: nn.Module) -> None:
    _said(model, 255 * _images(8))
    assert not any(module._forward_pre_hooks for module in model.modules())
