"""Recipes whose quantizers wait for no data, and what is said where they do."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.nn import QuantLinear

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


@pytest.mark.parametrize("recipe", ["dynamic", "weight_only"])
def test_calibrate_says_that_there_is_nothing_to_observe_and_fits_the_weights(recipe: str) -> None:
    prepared = fxq.prepare(net(), X, recipe)
    with pytest.warns(
        UserWarning, match=f"nothing to calibrate: with recipe '{recipe}' no quantizer .* waits for data"
    ):
        fxq.calibrate(prepared, [X], progress=False)
    layer = prepared.get_submodule("0")
    assert isinstance(layer, QuantLinear)
    torch.testing.assert_close(layer.weight_quantizer.amax.flatten(), layer.weight.detach().abs().amax(1))


@pytest.mark.parametrize("recipe", ["dynamic", "weight_only"])
def test_calibrate_without_batches_is_silent_and_convert_alone_gives_the_same(recipe: str) -> None:
    prepared = fxq.prepare(net(), X, recipe)
    converted = fxq.convert(prepared)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxq.calibrate(prepared)
        fxq.calibrate(prepared)
    torch.testing.assert_close(fxq.convert(prepared)(X), converted(X), rtol=0, atol=0)


@pytest.mark.parametrize("recipe", ["dynamic", "weight_only"])
def test_quantize_takes_no_batches_and_is_silent_about_those_it_does_not_need(recipe: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = fxq.quantize(net(), recipe=recipe)(X)
        torch.testing.assert_close(fxq.quantize(net(), recipe=recipe, example_inputs=X)(X), expected, rtol=0, atol=0)
        torch.testing.assert_close(fxq.quantize(net(), [X], recipe)(X), expected, rtol=0, atol=0)


def test_a_recipe_that_needs_data_says_how_many_quantizers_wait_for_it() -> None:
    message = (
        r"2 quantizers wait for data, such as '0_input_quantizer': pass batches of typical inputs, or take a recipe"
    )
    with pytest.raises(fxq.CalibrationError, match=message):
        fxq.quantize(net(), recipe="tensorrt", example_inputs=X)
    with pytest.raises(fxq.CalibrationError, match=message):
        fxq.calibrate(fxq.prepare(net(), X, "tensorrt"), None)


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quantizer, self.fc = fxq.TensorQuantizer(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.quantizer(x)))


def test_a_quantizer_placed_by_hand_still_waits_for_data() -> None:
    with pytest.raises(fxq.CalibrationError, match="1 quantizers wait for data, such as 'quantizer'"):
        fxq.quantize(ByHand().eval(), recipe="dynamic", example_inputs=X)
    converted = fxq.quantize(ByHand().eval(), [X], "dynamic", progress=False)
    assert converted.get_buffer("quantizer.scale").shape == ()


def test_only_those_without_any_range_are_asked_for_by_convert() -> None:
    prepared = fxq.prepare(ByHand().eval(), X, "dynamic")
    with pytest.raises(fxq.CalibrationError, match=r"^1 quantizers have no range: quantizer\."):
        fxq.convert(prepared)
