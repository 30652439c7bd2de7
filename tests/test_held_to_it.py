"""What passes, plans, targets and lowerings of others may not do in silence."""

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq import OpRule, QuantDescriptor, Same, Target
from fxq.graph import is_weighted
from fxq.graph.settings import Settings
from fxq.graph.trace import trace
from fxq.pipeline import run_passes
from fxq.record import Record

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


class SwitchesOff(fxq.Pass):
    """Leaves the weight of each layer in float, behind integer activations."""

    name = "switches_off"
    tolerance = fxq.EXACT

    def run(self, rw: fxq.Rewriter) -> None:
        for node in rw.nodes(is_weighted):
            rw.module(node).weight_quantizer.disable()


@pytest.mark.parametrize("stage", [fxq.Stage.CALIBRATED, fxq.Stage.FROZEN], ids=str)
def test_a_pass_that_switches_a_planned_quantizer_off_is_refused_by_name(
    stage: fxq.Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    gm = fxq.prepare(model(), X)
    fxq.calibrate(gm, [X], progress=False)
    monkeypatch.setattr(SwitchesOff, "stage", stage, raising=False)
    settings = Settings(fxq.get_target("tensorrt"), example_inputs=(X,))
    with pytest.raises(fxq.PassError, match=r"'switches_off' .* switches quantizers off: 0._weight_quantizer"):
        run_passes(gm, [SwitchesOff()], settings, Record(), complete=False)


def test_the_user_may_switch_quantizers_off_before_converting() -> None:
    gm = fxq.prepare(model(), X)
    fxq.calibrate(gm, [X], progress=False)
    gm.get_submodule("0").weight_quantizer.disable()
    assert fxq.convert(gm).get_buffer("0.weight").is_floating_point()


class PoisonsWeights(fxq.Pass):
    """Writes NaN past ``rw.set_weight``, which would refuse it."""

    stage = fxq.Stage.CALIBRATED
    name = "poisons_weights"
    seen: ClassVar[list[Any]] = []

    def run(self, rw: fxq.Rewriter) -> None:
        self.seen[:] = [args[0].shape for args, _ in rw.data]
        with torch.no_grad():
            rw.gm.get_parameter("0.weight").fill_(torch.nan)


def test_not_a_number_in_a_weight_is_refused_and_the_weights_are_as_before() -> None:
    fxq.register_pass("poisons_weights")(PoisonsWeights)
    gm = fxq.prepare(model(), X, fxq.recipe("tensorrt").with_pass("poisons_weights"))
    with pytest.raises(fxq.PassError, match=r"after pass 'poisons_weights' the parameter '0.weight' holds NaN"):
        fxq.calibrate(gm, X.split(4), progress=False)
    assert torch.equal(gm.get_parameter("0.weight"), model()[0].weight)
    assert PoisonsWeights.seen == [(4, 6), (4, 6)]  # rw.data can be iterated over


class PoisonsRange(fxq.Pass):
    """Writes into a range itself, past the assignment, which would refuse it."""

    stage = fxq.Stage.CALIBRATED
    name = "poisons_range"
    value: ClassVar[float] = 0.0

    def run(self, rw: fxq.Rewriter) -> None:
        rw.gm.get_submodule("0_input_quantizer").amax.fill_(self.value)


class TakesRange(fxq.Pass):
    stage = fxq.Stage.CALIBRATED
    name = "takes_range"

    def run(self, rw: fxq.Rewriter) -> None:
        rw.gm.get_submodule("0_input_quantizer").reset_amax()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1.0])
def test_a_range_that_is_none_is_refused_and_the_ranges_are_as_before(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PoisonsRange, "value", value)
    fxq.register_pass("poisons_range")(PoisonsRange)
    gm = fxq.prepare(model(), X, fxq.recipe("tensorrt").with_pass("poisons_range"))
    message = r"after pass 'poisons_range' the range of quantizer '0_input_quantizer' is negative or not finite: assign"
    with pytest.raises(fxq.PassError, match=message):
        fxq.calibrate(gm, [X], progress=False)
    assert not gm.get_submodule("0_input_quantizer").has_range


def test_a_pass_that_takes_a_range_is_refused_by_name() -> None:
    fxq.register_pass("takes_range")(TakesRange)
    gm = fxq.prepare(model(), X, fxq.recipe("tensorrt").with_pass("takes_range"))
    with pytest.raises(
        fxq.PassError, match=r"'takes_range' .* takes the ranges of quantizers: 0_input_quantizer\. Give"
    ):
        fxq.calibrate(gm, [X], progress=False)


def test_a_pass_with_data_that_never_ran_is_told_of() -> None:
    gm = fxq.prepare(model(), X, fxq.recipe("dynamic").with_pass("correct_bias"))
    with pytest.warns(UserWarning, match="correct_bias did not run: call fxq.calibrate"):
        fxq.convert(gm)


def test_a_layer_with_hooks_stays_in_float_with_the_reason() -> None:
    hooked = model()
    hooked[2].register_forward_hook(lambda module, inputs, outputs: outputs * 2)
    gm = fxq.prepare(hooked, X)
    assert "has forward hooks" in fxq.explain(gm)["2"].reason
    fxq.calibrate(gm, [X], progress=False)
    torch.testing.assert_close(fxq.convert(gm)(X), hooked(X), rtol=0, atol=0.05)  # the first layer is in 8 bits


class Plans(fxq.Pass):
    """Plans what a test asks for."""

    stage = fxq.Stage.PLANNED
    name = "plans"

    def __init__(self, path: str, slot: int | str, descriptor: Any) -> None:
        self.wanted = path, slot, descriptor

    def run(self, rw: fxq.Rewriter) -> None:
        path, slot, descriptor = self.wanted
        for node in rw.nodes(lambda node: node.op == "call_module" and node.target == path):
            if isinstance(slot, int):
                rw.plan_input(node, slot, descriptor, why="a test")
            else:
                rw.plan_inside(node, slot, descriptor, why="a test")


REFUSED = {
    "unsigned weight": ("weight", QuantDescriptor(unsigned=True), fxq.TargetError, "takes signed"),
    "16-bit activation": (0, QuantDescriptor(num_bits=16), fxq.TargetError, "no 16-bit activations"),
    "per channel": (0, QuantDescriptor(axis=1), fxq.TargetError, "quantizes activations per tensor"),
    "a text": (0, "int8", fxq.PassError, "takes a fxq.QuantDescriptor, got 'int8'"),
}


@pytest.mark.parametrize(("slot", "descriptor", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_a_plan_that_the_target_cannot_express_is_refused_where_it_is_made(
    slot: int | str, descriptor: Any, error: type[Exception], message: str
) -> None:
    gm = trace(model(), (X,))
    settings = Settings(fxq.get_target("tensorrt"), example_inputs=(X,))
    with pytest.raises(error, match=f"{slot!r} of '_0', planned by 'plans': .*{message}"):
        run_passes(gm, [Plans("0", slot, descriptor)], settings, Record(), complete=False)


def test_an_lstm_with_one_of_its_weights_planned_is_lowered() -> None:
    class PlanOne(Plans):
        def __init__(self) -> None:
            super().__init__("lstm", "weight_ih_l0", QuantDescriptor(axis=0))

    fxq.register_pass("test_plan_one")(PlanOne)
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    net = Net().eval()
    x = X.reshape(4, 2, 6)
    recipe = fxq.recipe("weight_only").without_pass("plan_ops").with_pass("test_plan_one")
    converted = fxq.convert(fxq.prepare(net, x, recipe))
    assert converted.get_buffer("lstm.weight_ih_l0").dtype is torch.int8
    assert converted.get_buffer("lstm.weight_hh_l0").is_floating_point()
    torch.testing.assert_close(converted(x), net(x), rtol=0, atol=0.02)  # 8 bits of one weight


def test_a_fixed_range_on_what_follows_another_tensor_is_a_conflict_that_names_both() -> None:
    target = Target(
        "test_fixed_follower",
        (OpRule("linear", inputs=True, weight=True, output=True), OpRule("sigmoid", inputs=True, output=True)),
        (Same("sigmoid"), fxq.Fixed("sigmoid", 0, 1)),
    )
    net = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 2)).eval()
    with pytest.raises(fxq.TargetError, match=r"wants one range for '_1' and '_0'.*'_1' \(sigmoid\) is fixed"):
        fxq.prepare(net, X, fxq.recipe("tensorrt").replace(target=target))


def test_a_target_given_for_a_recipe_says_so() -> None:
    with pytest.raises(fxq.RecipeError, match="this is a target and no recipe"):
        fxq.Recipe.from_toml(fxq.get_target("tensorrt").to_toml())
