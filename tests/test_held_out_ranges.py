"""Ranges take in the samples that are held out to judge passes by, unless these themselves have less error without."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.graph import activation_quantizers
from fxq.state import find_state

# 4 bits, so that rounding moves the mean of a layer visibly.
PLAIN = fxq.recipe("tensorrt").replace(default=fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0)))
CORRECTED = PLAIN.with_pass("correct_bias")
HELD = slice(-8, None)  # eight samples of 64, enough to compare on alone


@fxq.register_pass("test_sets_a_weight_again")
@dataclass(frozen=True)
class SetsAWeightAgain(fxq.Pass):
    """Gives a layer the weight that it has; the ranges behind it are fitted again."""

    stage = fxq.Stage.CALIBRATED
    improves = True

    def run(self, rw: fxq.Rewriter) -> None:
        rw.set_weight("0", rw.gm.get_submodule("0").weight.detach().clone(), "again")  # type: ignore[operator]


def model() -> nn.Module:
    """Return two layers that read the same numbers, since the first is the identity."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    with torch.no_grad():
        layers[0].weight.copy_(torch.eye(16))
        layers[0].bias.zero_()
    return layers.eval()


def whole_numbers(furthest_held_out: int) -> Tensor:
    """Return samples of whole numbers up to 127, which a range of 127 codes exactly; one value held out is given."""
    data = torch.randint(0, 101, (64, 16), generator=torch.Generator().manual_seed(0)).float()
    data[0, 0] = 127
    data[HELD][0, 0] = furthest_held_out
    return data


def calibrated(recipe: fxq.Recipe, data: Tensor) -> GraphModule:
    gm = fxq.prepare(model(), data[:2], recipe)
    report = fxq.calibrate(gm, [data])
    assert all(step.kept for step in report.steps)
    return gm


def ranges(gm: GraphModule) -> list[float]:
    """Return how far the inputs of both layers may reach."""
    return [float(one.amax) for one in activation_quantizers(gm).values()]  # type: ignore[arg-type]


def were_learned(gm: GraphModule) -> bool:
    return find_state(gm).compared.were_learned  # type: ignore[union-attr]


AGAIN = PLAIN.with_pass("test_sets_a_weight_again")
RECIPES = {"fitted once": CORRECTED, "fitted again behind a weight": AGAIN.with_pass("correct_bias")}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_what_only_a_sample_held_out_reaches_does_not_clip(recipe: fxq.Recipe) -> None:
    gm = calibrated(recipe, whole_numbers(1000))
    assert ranges(gm) == [1000, 1000]
    assert were_learned(gm)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_range_stays_where_coarser_steps_cost_samples_held_out_more_than_what_clips(recipe: fxq.Recipe) -> None:
    gm = calibrated(recipe, whole_numbers(128))
    assert ranges(gm) == [127, 127]
    assert not were_learned(gm)


def test_where_no_pass_changes_anything_the_ranges_are_those_of_the_plain_recipe() -> None:
    gm = calibrated(AGAIN, whole_numbers(128))
    assert ranges(gm) == ranges(calibrated(PLAIN, whole_numbers(128))) == [128, 128]
    assert were_learned(gm)
