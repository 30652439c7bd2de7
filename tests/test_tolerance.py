"""What convert and prepare(verify=True) hold passes to, with passes written outside of the package."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.graph import kind
from fxq.registry import load_plugins, tables

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Lowered(fxq.Pass):
    """Base of plugins that edit the lowered graph; ROUNDING is what a pass promises that says nothing."""

    stage = fxq.Stage.LOWERED

    def run(self, rw: fxq.Rewriter) -> None:
        pass


class DropsRelu(Lowered):
    def run(self, rw: fxq.Rewriter) -> None:
        for node in rw.nodes(lambda node: kind(node) == "relu"):
            rw.bypass(node, "nobody will notice")


class SaysSo(DropsRelu):
    tolerance: ClassVar[fxq.Tolerance] = fxq.ANY


class Inserts(Lowered):
    """Base of passes that apply one function to the output."""

    function: ClassVar[object] = None
    operand: ClassVar[Tensor | None] = None

    def run(self, rw: fxq.Rewriter) -> None:
        (last,) = rw.gm.graph.output_node().all_input_nodes
        args = [rw.insert_call(last, last.target, last.args, last, last.kwargs)]
        if self.operand is not None:
            args.append(rw.read_tensor(last, "operand", self.operand))
        rw.call_instead(last, self.function, args, {}, "why not")


class AddsOneUlp(Inserts):
    tolerance: ClassVar[fxq.Tolerance] = fxq.EXACT
    function = staticmethod(torch.nextafter)
    operand = torch.tensor(torch.inf)


class Widens(Inserts):
    tolerance: ClassVar[fxq.Tolerance] = fxq.LSB(3)
    function = "double"


class Flattens(Inserts):
    function = "flatten"


class MakesNan(Inserts):
    tolerance: ClassVar[fxq.Tolerance] = fxq.LSB(1000)
    function = staticmethod(torch.mul)
    operand = torch.tensor(torch.nan)


class Frozen(fxq.Pass):
    stage = fxq.Stage.FROZEN

    def run(self, rw: fxq.Rewriter) -> None:
        for node in rw.nodes(lambda node: kind(node) == "relu"):
            rw.bypass(node, "nobody will notice")


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Forget the passes of each test."""
    load_plugins()
    before = tables.snapshot()
    yield
    tables.restore(before)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).eval()


def converted(*steps: type[fxq.Pass], verify: bool, after: str = "lower_to_qdq", x: Tensor | None = X) -> object:
    recipe = fxq.recipe("tensorrt")
    for step in steps:
        fxq.register_pass(step.__name__.lower())(step)
        recipe = recipe.with_pass(step.__name__.lower(), after=after)
        after = step.__name__.lower()
    prepared = fxq.prepare(net(), x, recipe, verify=verify)
    fxq.calibrate(prepared, [X], progress=False)
    return fxq.convert(prepared)


@pytest.mark.parametrize("verify", [True, False], ids=["verify", "without"])
def test_convert_names_the_lowered_pass_that_drops_a_relu(verify: bool) -> None:
    message = (
        r"^pass 'dropsrelu' \(test_tolerance.DropsRelu\), run after lower_to_qdq, changed 'output' by up to .* LSB, on "
        r"average .*, and promises ROUNDING; mend it, or declare `tolerance = fxq\.(ANY|LSB\(\d+\))`"
        r".*\. It edited '_2'$"
    )
    with pytest.raises(fxq.PassError, match=message):
        converted(DropsRelu, verify=verify)


@pytest.mark.parametrize("verify", [True, False], ids=["verify", "without"])
def test_convert_names_the_frozen_pass_that_drops_a_relu(verify: bool) -> None:
    with pytest.raises(fxq.PassError, match=r"^pass 'frozen' .*, run after freeze_ranges, changed 'output'"):
        converted(Frozen, verify=verify, after="freeze_ranges")


@pytest.mark.filterwarnings("ignore:the converted model is far:UserWarning")  # as it should be
@pytest.mark.parametrize("verify", [True, False], ids=["verify", "without"])
def test_a_pass_that_promises_nothing_may_drop_a_relu(verify: bool) -> None:
    assert "relu" not in str(converted(SaysSo, verify=verify)).lower()


@pytest.mark.parametrize("verify", [True, False], ids=["verify", "without"])
def test_a_liar_behind_a_pass_that_promises_nothing_is_named(verify: bool) -> None:
    with pytest.raises(
        fxq.PassError, match=r"^pass 'widens' .*, run after saysso, changed 'output' from torch.float32"
    ):
        converted(SaysSo, Widens, verify=verify)


@pytest.mark.parametrize("verify", [True, False], ids=["verify", "without"])
def test_a_liar_before_a_pass_that_promises_nothing_is_named(verify: bool) -> None:
    with pytest.raises(fxq.PassError, match=r"^pass 'flattens' .* changed 'output' from torch.float32 \(8, 4\) to"):
        converted(Flattens, SaysSo, verify=verify)


@pytest.mark.parametrize("verify", [True, False], ids=["verify", "without"])
def test_nan_that_appears_is_a_difference_whatever_the_tolerance(verify: bool) -> None:
    with pytest.raises(fxq.PassError, match=r"^pass 'makesnan' .* by up to inf .*, and promises LSB\(1000\)"):
        converted(MakesNan, verify=verify)


def test_one_unit_in_the_last_place_breaks_exact_and_the_error_offers_rounding() -> None:
    with pytest.raises(fxq.PassError, match=r"promises EXACT; mend it, or declare `tolerance = fxq.ROUNDING`"):
        converted(AddsOneUlp, verify=True)


def test_without_example_inputs_calibration_samples_are_compared_on() -> None:
    with pytest.raises(fxq.PassError, match=r"^pass 'dropsrelu' .*, run after lower_to_qdq, changed 'output' by up to"):
        converted(DropsRelu, verify=False, x=None)


def test_samples_that_came_by_keyword_are_compared_on_too() -> None:
    fxq.register_pass("dropsrelu")(DropsRelu)
    prepared = fxq.prepare(net(), None, fxq.recipe("tensorrt").with_pass("dropsrelu"))
    fxq.calibrate(prepared, [{"input": X}], progress=False)
    with pytest.raises(fxq.PassError, match=r"^pass 'dropsrelu' .* changed 'output' by up to"):
        fxq.convert(prepared)


def test_convert_leaves_the_prepared_model_and_the_example_inputs_as_they_were() -> None:
    x = X.clone()
    prepared = fxq.prepare(net(), x)
    fxq.calibrate(prepared, [X], progress=False)
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    fxq.convert(prepared)
    assert torch.equal(x, X)
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())


def test_a_prepared_model_that_was_cast_is_compared_on_inputs_that_are_cast_too() -> None:
    prepared = fxq.prepare(net(), X)
    fxq.calibrate(prepared, [X], progress=False)
    assert fxq.convert(prepared.half())(X.half()).dtype is torch.float16


def test_convert_without_ranges_says_so_before_it_runs_anything() -> None:
    with pytest.raises(fxq.CalibrationError, match="have no range"):
        fxq.convert(fxq.prepare(net(), X))


@pytest.mark.parametrize(("value", "wanted"), [(True, "fxq.ROUNDING"), (False, "fxq.ANY")])
def test_a_pass_that_still_sets_preserves_numbers_is_told_what_to_write(value: bool, wanted: str) -> None:
    old = type("Old", (Lowered,), {"preserves_numbers": value})
    with pytest.raises(fxq.PluginError, match=f"sets preserves_numbers.* write `tolerance = {wanted}`"):
        fxq.register_pass("old")(old)


@pytest.mark.parametrize(
    "value",
    [0.5, "EXACT", None, fxq.LSB, fxq.Tolerance("NONE")],
    ids=["number", "text", "nothing", "uncalled", "unknown"],
)
def test_a_tolerance_that_is_none_is_refused_with_the_four_that_are(value: object) -> None:
    wrong = type("Wrong", (Lowered,), {"tolerance": value})
    with pytest.raises(fxq.PluginError, match=r"write `tolerance = fxq.EXACT`, fxq.ROUNDING, fxq.LSB\(n\) or fxq.ANY"):
        fxq.register_pass("wrong")(wrong)


@pytest.mark.parametrize("count", [0, -1, True, "1"], ids=repr)
def test_lsb_takes_a_positive_number(count: object) -> None:
    with pytest.raises(fxq.PluginError, match=r"such as fxq.LSB\(1\)"):
        fxq.LSB(count)  # type: ignore[arg-type]


def test_only_passes_that_start_or_fit_quantization_promise_nothing() -> None:
    tolerances = {name: found.pass_type.tolerance for name, found in fxq.registered_passes().items()}
    own = {
        name for name, found in fxq.registered_passes().items() if found.pass_type.__module__.startswith("fxq_passes")
    }
    without = {name for name in own if tolerances[name] == fxq.ANY}
    assert without == {
        "attach_observers", "observe_ranges", "fit_ranges",
        "equalize_channels", "shift_activations", "refine_ranges", "round_weights", "correct_bias",
        "distill",
    }  # fmt: skip
    assert tolerances["lower_to_qdq"] == fxq.LSB(1)


def test_what_two_passes_promise_together_is_the_looser_of_the_two() -> None:
    assert fxq.EXACT.then(fxq.ROUNDING) == fxq.ROUNDING
    assert fxq.LSB(1).then(fxq.LSB(2)) == fxq.LSB(2)
    assert fxq.LSB(1).then(fxq.EXACT) == fxq.LSB(1)
    assert fxq.LSB(1).then(fxq.ANY) == fxq.ANY
