"""fxq.auto_quantize: as little in float as keeps the metric, measured on the converted model; and bad input."""

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.small import images, snapshot
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq_passes.correct_bias import CorrectBias

# Four bits a weight, one scale a layer: what each layer costs shows.
RECIPE = fxq.recipe("tensorrt").replace(default=fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=None)))
BATCHES = [images(8, seed=5), images(8, seed=6)]
EVALUATED = images(64, seed=7)


class Net(nn.Module):
    """Five layers; the weights of two hold one outlier, which leaves next to no steps to the others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3(self.conv2(self.conv1(x).relu()).relu()).relu().mean((2, 3))
        return self.fc2(self.fc1(x).relu())


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.conv2.weight[0, 0], net.fc1.weight[0, 0] = 6.0, 6.0
        net.conv2.bias[0], net.fc1.bias[0] = -9.0, -9.0  # behind the relu nothing is left of it
    return net


def closeness(model: nn.Module) -> Callable[[Any], float]:
    """A metric in dB: SQNR on other data, 60 at most."""
    with torch.no_grad():
        expected = model(EVALUATED)

    def metric(gm: Any) -> float:
        noise = (gm(EVALUATED) - expected).square().sum()
        return min(60.0, float(10 * torch.log10(expected.square().sum() / noise)))

    return metric


@torch.no_grad()
def slow_smallest(model: nn.Module, metric: Callable[[Any], float], least: float) -> int:
    """Return the fewest layers in float with which a converted model reaches ``least``: all subsets, prepared anew."""
    layers = ["conv1", "conv2", "conv3", "fc1", "fc2"]
    for count in range(len(layers) + 1):
        for chosen in itertools.combinations(layers, count):
            gm = fxq.quantize(model, BATCHES, RECIPE.with_rules(*((path, None) for path in chosen)), min_sqnr_db=-99)
            if metric(gm) >= least:
                return count
    raise AssertionError("not even float reaches it")


@pytest.mark.parametrize("max_drop", [40, 24])
def test_as_few_as_a_search_through_all_subsets(model: nn.Module, max_drop: float) -> None:
    metric = closeness(model)
    found = fxq.auto_quantize(model, BATCHES, metric, max_drop, RECIPE)
    assert found.is_reached
    assert found.quantized_value < 60 - max_drop
    assert len(found.in_float) == slow_smallest(model, metric, 60 - max_drop)
    with torch.no_grad():
        assert metric(found.converted) == found.value >= found.float_value - max_drop
    assert found.groups == 5
    assert found.notes == ()


def test_the_recipe_as_text_gives_the_same_model(model: nn.Module) -> None:
    metric = closeness(model)
    found = fxq.auto_quantize(model, BATCHES, metric, 45, RECIPE)
    assert found.in_float
    assert [rule.match for rule in found.recipe.rules] == [path for paths in found.in_float for path in paths]
    again = fxq.quantize(model, BATCHES, fxq.Recipe.from_toml(found.recipe.to_toml()))
    with torch.no_grad():
        assert metric(again) == found.value


def test_nothing_is_left_in_float_where_nothing_needs_it(model: nn.Module) -> None:
    before = snapshot(model)
    found = fxq.auto_quantize(model, BATCHES, closeness(model), 59, RECIPE)
    assert found.in_float == ()
    assert [attempt.is_converted for attempt in found.attempts] == [True]
    assert found.int8_share == 1
    assert snapshot(model) == before


class TwoHeads(nn.Module):
    """Two layers, each an output; the weights of the second have outliers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 10), nn.Linear(64, 10)
        with torch.no_grad():
            self.b.weight[:, 0] = 1.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.flatten(1)
        return self.a(x), self.b(x)


def test_what_is_not_needed_goes_back_to_integers() -> None:
    torch.manual_seed(0)
    model = TwoHeads().eval()
    with torch.no_grad():
        expected = model(EVALUATED)[0]

    def metric(gm: Any) -> float:  # the noisier head does not count
        return -float((gm(EVALUATED)[0] - expected).square().mean())

    found = fxq.auto_quantize(model, BATCHES, metric, 1e-6, RECIPE)
    assert found.in_float == (("a",),)
    assert [attempt.groups for attempt in found.attempts] == [0, 1, 2, 1, 1]  # b; b and a; a alone; converted


class Heads(nn.Module):
    """Layers side by side, each an output; the further on, the larger, and with it the noise."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(64, 4, bias=False) for _ in range(count))
        with torch.no_grad():
            for index, head in enumerate(self.heads):
                head.weight *= 1.1**index

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(x.flatten(1)) for head in self.heads], 1)


@torch.no_grad()
def found_of_heads(*exact: int) -> fxq.AutoQuantized:
    """Return what is found for 24 heads, of which by the metric some have to be exact."""
    torch.manual_seed(0)
    model = Heads(24).eval()
    outputs = [4 * head + index for head in exact for index in range(4)]
    expected = model(EVALUATED)[:, outputs]

    def metric(gm: Any) -> float:
        return -float((gm(EVALUATED)[:, outputs] - expected).abs().max())

    return fxq.auto_quantize(model, BATCHES, metric, 1e-5, RECIPE)


# What it takes to find that the least noisy is needed: all converted; 1 to 16 and all 24 by doubling; 3 by halving. And
# the result is converted.
BESIDE_PRUNING = 1 + 6 + 3 + 1


def test_many_that_are_not_needed_go_back_at_once() -> None:
    found = found_of_heads(0)
    assert found.in_float == (("heads.0",),)
    assert len(found.attempts) == BESIDE_PRUNING + 5  # 1, 2, 4, 8 and the other 8
    assert found.notes == ()


def test_one_that_is_needed_among_others_is_found_by_halving() -> None:
    found = found_of_heads(0, 13)
    assert found.in_float == (("heads.13",), ("heads.0",))
    # 23; 22, 21; 20 to 17; not 16 to 9, not 16 to 13; 16, 15; 14: so it is 13. And 12; 11; 10, 9; 8 to 5; 4 to 1.
    assert len(found.attempts) == BESIDE_PRUNING + 7 + 5


def test_where_many_are_needed_not_all_are_tried() -> None:
    found = found_of_heads(*range(24))
    assert len(found.in_float) == 24
    assert found.notes == (
        "7 of the groups in float were not tried in integers one by one: 16 others that multiply more were all needed",
    )
    assert found_of_heads(*range(17)).notes == ()


def test_groups_are_tried_by_doubling(model: nn.Module) -> None:
    found = fxq.auto_quantize(model, BATCHES, closeness(model), 24, RECIPE)
    assert [attempt.groups for attempt in found.attempts][:4] == [0, 1, 2, 4]


def test_the_share_of_multiplications_is_counted(model: nn.Module) -> None:
    found = fxq.auto_quantize(model, BATCHES, closeness(model), 45, RECIPE)
    by_hand = {"conv1": 36 * 72, "conv2": 36 * 64, "conv3": 36 * 64, "fc1": 8 * 16, "fc2": 16 * 10}
    left = sum(by_hand[path] for (path,) in found.in_float)
    assert found.int8_share == pytest.approx(1 - left / sum(by_hand.values()))


@pytest.mark.parametrize("max_float", [1, 0.2])
def test_no_more_than_allowed_is_left_in_float(model: nn.Module, max_float: float) -> None:
    found = fxq.auto_quantize(model, BATCHES, closeness(model), 30, RECIPE, max_float=max_float)
    assert len(found.in_float) == 1
    assert not found.is_reached
    assert found.value > found.quantized_value
    assert "max_float allows 1 of 5 groups in float, which does not keep the metric" in found.notes[0]
    assert "NOT reached" in found.table()


def test_nothing_may_be_left_in_float(model: nn.Module) -> None:
    found = fxq.auto_quantize(model, BATCHES, closeness(model), 30, RECIPE, max_float=0)
    assert found.in_float == ()
    assert found.notes == ("there is nothing to leave in float (max_float allows none)",)


@pytest.mark.parametrize(
    ("recipe", "learns_by"),
    [("tensorrt", "correct_bias"), ("weight_only_int4", "round_weights"), (RECIPE, None)],
    ids=["by-name", "weights-alone", "of-its-own"],
)
@pytest.mark.parametrize("count", [200, 16], ids=["judged", "too-few-to-judge"])
def test_it_starts_from_the_model_of_quantize(model: nn.Module, recipe: Any, learns_by: str | None, count: int) -> None:
    """Of a recipe by name at "fast" too, where samples can be held out to judge by: with fewer at "plain"."""
    metric, data = closeness(model), fxq.Data(images(count, seed=5).split(8))
    with torch.no_grad():
        expected = metric(fxq.quantize(model, data, recipe, example_inputs=BATCHES[0]))
    found = fxq.auto_quantize(model, data, metric, 60, recipe)
    assert found.value == expected
    with torch.no_grad():
        assert metric(fxq.quantize(model, data, found.recipe, example_inputs=BATCHES[0])) == expected
    ran = any(one.name == learns_by for one in found.recipe.passes)
    assert ran is (learns_by is not None and count == 200)


@pytest.mark.filterwarnings("ignore:correct_bias failed, and was undone")
def test_a_pass_that_failed_is_not_asked_for_by_the_recipe_that_was_found(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("stop")

    monkeypatch.setattr(CorrectBias, "run", fails)
    metric, batches = closeness(model), list(images(64, seed=5).split(8))
    found = fxq.auto_quantize(model, batches, metric, 60)
    names = [one.name for one in found.recipe.passes]
    assert "refine_ranges" in names
    assert "correct_bias" not in names
    with torch.no_grad():
        assert metric(fxq.quantize(model, batches, found.recipe)) == found.value


def failing_at(metric: Callable[[Any], float], at: int, undefined: Callable[[], float]) -> Callable[[Any], float]:
    count = itertools.count(1)
    return lambda gm: undefined() if next(count) == at else metric(gm)


@pytest.mark.parametrize("at", range(3, 7))
@pytest.mark.parametrize(
    ("undefined", "said"),
    [(lambda: 1 / 0, "raised ZeroDivisionError on the "), (lambda: math.nan, "returned nan for the ")],
    ids=["raises", "nan"],
)
def test_a_metric_that_fails_later_leaves_a_usable_model(
    model: nn.Module, at: int, undefined: Callable[[], float], said: str
) -> None:
    metric = closeness(model)
    found = fxq.auto_quantize(model, BATCHES, failing_at(metric, at, undefined), 30, RECIPE)
    assert f"the metric {said}" in found.notes[-1]
    assert "this is the best converted model by then" in found.notes[-1]
    with torch.no_grad():
        assert metric(found.converted) == found.value
    assert "NOT reached" in found.table()


def test_a_metric_that_fails_before_there_is_a_model_is_an_error(model: nn.Module) -> None:
    with pytest.raises(fxq.MetricError, match="raised ZeroDivisionError on the converted model"):
        fxq.auto_quantize(model, BATCHES, failing_at(closeness(model), 2, lambda: 1 / 0), 30, RECIPE)


def interrupting(metric: Callable[[Any], float], at: int) -> Callable[[Any], float]:
    count = itertools.count(1)

    def interrupted(gm: Any) -> float:
        if next(count) == at:
            raise KeyboardInterrupt
        return metric(gm)

    return interrupted


@pytest.mark.parametrize("at", range(3, 7))
def test_an_interrupt_at_any_point_leaves_a_usable_model(model: nn.Module, at: int) -> None:
    metric = closeness(model)
    found = fxq.auto_quantize(model, BATCHES, interrupting(metric, at), 30, RECIPE)
    assert found.notes[-1].startswith("interrupted: this is the best converted model by then")
    with torch.no_grad():
        assert metric(found.converted) == found.value
    assert "NOT reached" in found.table()


def test_an_interrupt_names_what_was_found_but_not_converted(model: nn.Module) -> None:
    metric = closeness(model)
    whole = fxq.auto_quantize(model, BATCHES, metric, 30, RECIPE)
    found = fxq.auto_quantize(model, BATCHES, interrupting(metric, len(whole.attempts) + 1), 30, RECIPE)
    assert "with these in float the metric was kept: " in found.notes[-1]
    assert set(found.notes[-1].rpartition(": ")[2].split(", ")) == {path for one in whole.in_float for path in one}


def test_what_did_not_keep_the_metric_is_not_said_to(model: nn.Module) -> None:
    """What max_float allows did not keep it, and is converted when the interrupt comes."""
    metric = closeness(model)
    whole = fxq.auto_quantize(model, BATCHES, metric, 30, RECIPE, max_float=1)
    assert not whole.is_reached
    at = len(whole.attempts) + 2  # beside the first on the float model, it was called on that once more
    found = fxq.auto_quantize(model, BATCHES, interrupting(metric, at), 30, RECIPE, max_float=1)
    assert found.notes[-1] == "interrupted: this is the best converted model by then"


def test_what_fell_short_when_converted_is_not_said_to_wait_for_that(model: nn.Module) -> None:
    metric = closeness(model)

    def worse_when_converted(gm: Any) -> float:
        is_converted = hasattr(gm, "graph") and any("dequantize" in node.name for node in gm.graph.nodes)
        return metric(gm) - (50 if is_converted else 0)

    whole = fxq.auto_quantize(model, BATCHES, worse_when_converted, 30, RECIPE)
    assert [one.is_converted for one in whole.attempts[-2:]] == [True, True]
    at = len(whole.attempts) + 2
    found = fxq.auto_quantize(model, BATCHES, interrupting(worse_when_converted, at), 30, RECIPE)
    assert found.notes[-1] == "interrupted: this is the best converted model by then"


def test_an_interrupt_of_the_last_reading_of_data_leaves_a_usable_model(model: nn.Module) -> None:
    """Nothing is read, and nothing of the user's is called, once the search is over."""

    def found(at: int) -> tuple[fxq.AutoQuantized, int]:
        calls = itertools.count(1)

        def forward(gm: Any, batch: Tensor) -> Any:
            if next(calls) == at:
                raise KeyboardInterrupt
            return gm(batch)

        result = fxq.auto_quantize(
            model, BATCHES, closeness(model), 30, RECIPE, example_inputs=BATCHES[0], forward=forward
        )
        return result, next(calls) - 1

    _, calls = found(at=0)
    assert found(at=calls)[0].notes[-1].startswith("interrupted")


def test_an_interrupt_before_there_is_a_model_is_one(model: nn.Module) -> None:
    with pytest.raises(KeyboardInterrupt):
        fxq.auto_quantize(model, BATCHES, interrupting(closeness(model), 2), 40, RECIPE)


def test_a_budget_ends_the_search_with_what_is_known(model: nn.Module) -> None:
    metric = closeness(model)

    def slow(gm: Any) -> float:
        time.sleep(0.3)
        return metric(gm)

    found = fxq.auto_quantize(model, BATCHES, slow, 30, RECIPE, budget_s=0.1)
    assert found.in_float == ()
    assert found.value == found.quantized_value
    assert found.notes == ("the budget of 0.1 s ended the search: nothing kept the metric by then",)
    assert len(found.attempts) == 1


def test_a_budget_in_the_middle_converts_what_was_found(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = closeness(model)
    clock, count = [0.0], itertools.count()

    def ticking(gm: Any) -> float:
        clock[0] += 1  # a second for each metric
        next(count)
        return metric(gm)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    whole = fxq.auto_quantize(model, BATCHES, ticking, 30, RECIPE)
    clock[0] = 0.0
    kept = next(index for index, one in enumerate(whole.attempts) if one.value >= 30 and not one.is_converted)
    # The first conversion took two seconds by this clock, so 2.5 are kept for the last.
    found = fxq.auto_quantize(model, BATCHES, ticking, 30, RECIPE, budget_s=whole.attempts[kept].seconds + 2.4)
    assert (
        found.notes[0]
        == f"the budget of {whole.attempts[kept].seconds + 2.4:g} s ended the search: fewer groups in float might do"
    )
    assert found.is_reached
    assert len(found.in_float) == whole.attempts[kept].groups


def test_a_converted_model_that_falls_short_gets_more_in_float(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = closeness(model)
    expected = fxq.auto_quantize(model, BATCHES, metric, 40, RECIPE)

    def worse_when_converted(gm: Any) -> float:
        is_converted = hasattr(gm, "graph") and any("dequantize" in node.name for node in gm.graph.nodes)
        return metric(gm) - (2.5 if is_converted else 0)

    found = fxq.auto_quantize(model, BATCHES, worse_when_converted, 60 - expected.value + 0.5, RECIPE)
    assert found.is_reached
    assert len(found.in_float) > len(expected.in_float)


def test_that_no_converted_model_keeps_the_metric_is_said_beside_other_notes(model: nn.Module) -> None:
    metric = closeness(model)

    def worse_when_converted(gm: Any) -> float:
        is_converted = hasattr(gm, "graph") and any("dequantize" in node.name for node in gm.graph.nodes)
        return metric(gm) - (50 if is_converted else 0)

    found = fxq.auto_quantize(model, [images(3)], worse_when_converted, 50, RECIPE, max_float=1)
    assert found.notes == (
        "groups were ranked on 3 samples, which says little",
        "no converted model kept the metric: this is the one that comes nearest",
    )


def of_the_model_alone(model: nn.Module) -> Callable[[Any], float]:
    return lambda gm: float(model(EVALUATED).abs().mean())


def random(model: nn.Module) -> Callable[[Any], float]:
    values = itertools.count()
    return lambda gm: -float(next(values))


def ever_higher(model: nn.Module) -> Callable[[Any], float]:
    """A metric by whose chance the quantized model looks better than the float one."""
    values = itertools.count()
    return lambda gm: float(next(values))


def failing(error: BaseException) -> Callable[[nn.Module], Callable[[Any], float]]:
    def make(model: nn.Module) -> Callable[[Any], float]:
        def metric(gm: Any) -> float:
            if gm is model:
                return 1.0
            raise error

        return metric

    return make


@pytest.mark.parametrize(
    ("make", "options", "error", "match"),
    [
        (of_the_model_alone, {}, fxq.MetricError, "does not depend on the model that it is given"),
        (random, {"max_drop": 0.5}, fxq.MetricError, "its own scatter.*seed what is random"),
        (ever_higher, {"max_drop": 0.5}, fxq.MetricError, "is 2 for it in a second call.*its own scatter"),
        (lambda m: lambda gm: math.nan, {}, fxq.MetricError, "returned nan for the float model"),
        (lambda m: lambda gm: math.inf, {}, fxq.MetricError, "is inf for the float model"),
        (lambda m: lambda gm: gm(EVALUATED), {}, fxq.MetricError, "for the float model: it must return one number"),
        (
            failing(ValueError("no labels")),
            {},
            fxq.MetricError,
            "raised ValueError on the converted model with 0 gro.*no l",
        ),
        (lambda m: 0.9, {}, fxq.MetricError, "metric is a function of a model"),
        (closeness, {"max_drop": -0.1}, fxq.InputError, "less than no drop not even the float model reaches"),
        (closeness, {"max_drop": math.nan}, fxq.InputError, "max_drop is how much lower.*got nan"),
        (closeness, {"max_drop": "1"}, fxq.InputError, "max_drop is how much lower.*got '1'"),
        (closeness, {"max_float": 1.5}, fxq.InputError, "max_float is a count of groups, or as a float .*got 1.5"),
        (closeness, {"max_float": True}, fxq.InputError, "max_float is a count of groups, .*got True"),
        (closeness, {"budget_s": 0}, fxq.InputError, "budget_s is a number of seconds above 0, got 0"),
        (closeness, {"batches": []}, fxq.CalibrationError, "there was no batch"),
        (closeness, {"batches": [torch.zeros(2, 3, 8, 8)]}, fxq.FxqError, "expected input.*to have 1 channels"),
    ],
    ids=[
        *(
            "independent",
            "random",
            "ever-higher",
            "nan",
            "inf",
            "many",
            "raises",
            "no-function",
            "negative-drop",
            "nan-drop",
        ),
        *("text-drop", "share-above-1", "bool-share", "no-budget", "no-batch", "misfit"),
    ],
)
def test_bad_input_is_refused(
    model: nn.Module, make: Any, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    arguments = {"batches": BATCHES, "max_drop": 30, "recipe": RECIPE, **options}
    with pytest.raises(error, match=match):
        fxq.auto_quantize(model, metric=make(model), **arguments)


def test_a_metric_that_is_equal_by_chance_is_none_that_ignores_the_model(model: nn.Module) -> None:
    with torch.no_grad():
        labels = model(EVALUATED).argmax(1)
    found = fxq.auto_quantize(
        model, BATCHES, lambda gm: float((gm(EVALUATED).argmax(1) == labels).float().mean()), recipe="tensorrt"
    )
    assert found.is_reached


@pytest.mark.parametrize("undefined", [lambda: 1 / 0, lambda: math.nan], ids=["raises", "nan"])
def test_a_metric_that_is_undefined_on_a_broken_model_looks_at_it(
    model: nn.Module, undefined: Callable[[], float]
) -> None:
    """As precision is where nothing is found, and the cosine where all is zero."""

    def metric(gm: Any) -> float:
        return 1.0 if gm(EVALUATED).std(0).any() else undefined()

    found = fxq.auto_quantize(model, BATCHES, metric)
    assert found.is_reached
    assert found.notes == ()


def test_few_samples_are_said_and_batches_may_differ_in_shape(model: nn.Module) -> None:
    found = fxq.auto_quantize(model, iter([images(2), F.pad(images(1), (1, 1, 1, 1))]), closeness(model), 45, RECIPE)
    assert "groups were ranked on 3 samples, which says little" in found.notes


def test_a_model_with_nothing_to_quantize_comes_back_in_float() -> None:
    model = nn.Sequential(nn.Flatten(), nn.ReLU()).eval()
    with pytest.warns(UserWarning, match="nothing was quantized"):
        found = fxq.auto_quantize(model, BATCHES, lambda gm: float(gm(EVALUATED).mean()))
    assert found.is_reached
    assert (found.groups, found.int8_share) == (0, 0)


def test_a_model_without_float_outputs_is_ranked_by_the_metric(model: nn.Module) -> None:
    class Signs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (100 * self.inner(x)).to(torch.int64)

    given = Signs().eval()
    expected = given(EVALUATED)
    found = fxq.auto_quantize(
        given, BATCHES, lambda gm: -float((gm(EVALUATED) - expected).abs().float().mean()), 1e-6, RECIPE
    )
    assert found.in_float
    assert any("ranked by the metric" in note for note in found.notes)
