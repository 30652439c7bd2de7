import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq import calib

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def prepared(recipe: fxq.Recipe, hand: bool = False) -> torch.fx.GraphModule:
    layers = [nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)]
    if hand:
        layers.insert(2, fxq.TensorQuantizer(fxq.QuantDescriptor(calibrator="mse"), disabled=True))  # type: ignore[arg-type]
    return fxq.prepare(nn.Sequential(*layers).eval(), X, recipe=recipe)


def quantizer(gm: torch.fx.GraphModule, path: str) -> fxq.TensorQuantizer:
    found = gm.get_submodule(path)
    assert isinstance(found, fxq.TensorQuantizer)
    return found


@pytest.mark.parametrize(
    ("name", "calibrator"),
    [("max", calib.MaxCalibrator), ("histogram", calib.HistogramCalibrator), ("entropy", calib.HistogramCalibrator)],
)
def test_activations_get_the_recipes_calibrator_and_are_switched_on(name: str, calibrator: type) -> None:
    found = quantizer(prepared(fxq.recipe("tensorrt").replace(calibrator=name)), "0_input_quantizer")
    assert isinstance(found.calibrator, calibrator)
    assert found.is_enabled


def test_a_calibrator_that_a_rule_names_is_kept() -> None:
    config = fxq.QConfig(activation=fxq.QuantDescriptor(calibrator="percentile"))
    gm = prepared(fxq.recipe("tensorrt").replace(calibrator="max").with_rules(("2", config)))
    assert quantizer(gm, "2_input_quantizer").descriptor.calibrator == "percentile"
    assert quantizer(gm, "0_input_quantizer").descriptor.calibrator == "max"


def test_weights_are_observed_by_their_magnitude() -> None:
    found = quantizer(prepared(fxq.recipe("tensorrt")), "0._weight_quantizer")
    assert found.is_enabled
    assert isinstance(found.calibrator, calib.MaxCalibrator)


def test_a_quantizer_placed_by_hand_stays_as_it_is() -> None:
    found = quantizer(prepared(fxq.recipe("tensorrt"), hand=True), "2")
    assert not found.is_enabled
    assert found.descriptor.calibrator == "mse"


def test_a_recipe_without_the_pass_is_refused_for_its_quantizers_would_stay_off() -> None:
    with pytest.raises(fxq.PassError, match="'weight' of '0' is planned and has no quantizer that is on"):
        prepared(fxq.recipe("tensorrt").without_pass("attach_observers"))


class Overwritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y[:, 0] = 0.0
        return self.second(y)


def test_a_weight_stays_in_float_where_the_input_does() -> None:
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    explained = fxq.explain(fxq.prepare(Overwritten().eval(), x))
    assert not explained["second"].is_quantized
    assert "its input is not quantized" in explained["second"].reason
