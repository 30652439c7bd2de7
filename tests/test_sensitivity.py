"""fxq.sensitivity: groups that fuse, switched in one calibrated model, against models prepared again with rules."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.models import Digits
from support.small import images, residual, snapshot
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.batches import Inputs
from fxq.graph.multiplications import count_multiplications
from fxq.sensitivity import PartlyMeasuredError, as_kept_data, make_switchboard, measure_groups, read_samples

BATCHES = [images(6, seed=3), images(5, seed=4)]


def calibrated(model: nn.Module, recipe: Any = "tensorrt", batches: Any = BATCHES) -> GraphModule:
    gm = fxq.prepare(model, batches[0][:2], recipe)
    fxq.calibrate(gm, batches)
    return gm


def decibel(expected: Tensor, found: Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (expected - found).square().sum()))


def prepared_again(model: nn.Module, recipe: str, paths: list[str], batches: list[Tensor]) -> Tensor:
    """The slow way: prepare with rules, calibrate, run."""
    rules = fxq.recipe(recipe).with_rules(*((path, None) for path in paths))
    gm = calibrated(model, rules, batches)
    with torch.no_grad():
        return torch.cat([gm(batch) for batch in batches])


@pytest.mark.parametrize("recipe", ["tensorrt", "openvino", "onnxruntime"])
@pytest.mark.parametrize("mode", ["one_quantized", "one_float"])
def test_values_are_those_of_models_prepared_again(recipe: str, mode: Any) -> None:
    model = residual()
    with torch.no_grad():
        expected = torch.cat([model(batch) for batch in BATCHES])
    found = fxq.sensitivity(model, BATCHES, mode=mode, recipe=recipe)
    everything = [path for group in found for path in group.paths]
    for group in found:
        in_float = group.paths if mode == "one_float" else set(everything) - set(group.paths)
        value = decibel(expected, prepared_again(model, recipe, list(in_float), BATCHES))
        assert group.value == pytest.approx(value, abs=0.05)  # batch norms folded or not: float rounding
    assert found.quantized_value == pytest.approx(
        decibel(expected, prepared_again(model, recipe, [], BATCHES)), abs=0.05
    )
    assert found.float_value == math.inf
    assert found.samples == 11


@pytest.mark.parametrize("name", ["tensorrt", "onnxruntime", "weight_only_int4"])
def test_a_recipe_by_name_is_calibrated_as_quantize_does(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    # Channels that depend on each other, so that weights can be rounded for their inputs.
    batches = list((torch.randn(64, 3) @ torch.randn(3, 8) + 0.1 * torch.randn(64, 8)).split(8))
    with torch.no_grad():  # one channel that takes the codes of the others
        model[0].weight[0] *= 60
        model[2].weight[:, 0] /= 60
    found = fxq.sensitivity(model, batches, recipe=name)
    fast = calibrated(model, fxq.recipe(name).with_accuracy("fast"), batches)
    assert found.quantized_value == fxq.sensitivity(fast, batches).quantized_value
    plain = fxq.sensitivity(model, batches, recipe=fxq.recipe(name))
    assert found.quantized_value > plain.quantized_value
    few = fxq.sensitivity(model, batches[:2], recipe=name)  # to judge by
    assert few.quantized_value == fxq.sensitivity(model, batches[:2], recipe=fxq.recipe(name)).quantized_value


def test_a_trained_residual_network_gives_the_same_as_prepared_again(digits: Digits) -> None:
    batches = [digits.training_images[:24]]
    found = fxq.sensitivity(digits.model, batches, mode="one_float")
    with torch.no_grad():
        expected = digits.model(batches[0])
    for group in (*found.worst(1), found["layer2.0.conv2"]):
        value = decibel(expected, prepared_again(digits.model, "tensorrt", list(group.paths), batches))
        assert group.value == pytest.approx(value, abs=0.05)
    assert found["layer2.0.conv2"].paths[0] == "layer2.0.conv2"
    assert len(found["layer2.0.conv2"].paths) == 2  # with the add that it absorbs
    # What is best to leave in float is better than anything else alone, and than nothing.
    assert found.worst(1)[0].value == max(group.value for group in found) > found.quantized_value


def test_a_convolution_and_the_add_that_it_absorbs_are_one_group() -> None:
    found = fxq.sensitivity(residual(), BATCHES)
    assert [group.paths for group in found] == [("conv1",), ("conv2", "add"), ("fc",)]
    assert found["add"] is found["conv2"]
    found = fxq.sensitivity(residual(), BATCHES, recipe="onnxruntime")  # runs adds by themselves
    assert [group.paths for group in found] == [("conv1",), ("conv2",), ("add",), ("adaptiveavgpool2d",), ("fc",)]


def test_an_output_quantizer_belongs_to_what_makes_the_output() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.fc1(x).relu().reshape(-1, 8)).softmax(-1)

    torch.manual_seed(0)
    x = torch.randn(32, 8)
    found = fxq.sensitivity(Net().eval(), [x], recipe="onnxruntime")
    assert [group.path for group in found] == ["fc1", "fc2", "softmax"]


def test_all_calls_of_a_module_are_one_group() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x).relu())

    torch.manual_seed(0)
    (group,) = fxq.sensitivity(Twice().eval(), [torch.randn(16, 8)])
    assert group.path == "fc"
    assert group.multiplications == 1


def test_multiplications_are_counted() -> None:
    found = fxq.sensitivity(residual(), BATCHES)
    by_hand = {"conv1": 8 * 8 * 4 * 9, "conv2": 8 * 8 * 4 * 4 * 9, "fc": 4 * 10}
    for path, count in by_hand.items():
        assert found[path].multiplications == pytest.approx(count / sum(by_hand.values()))


def test_multiplications_of_recurrent_layers_are_counted() -> None:
    torch.manual_seed(0)
    gm = fxq.prepare(nn.Sequential(nn.LSTM(4, 5, bidirectional=True)).eval(), torch.randn(7, 3, 4), "weight_only")
    counted = count_multiplications(gm, Inputs((torch.randn(7, 3, 4),), {}))
    assert sum(counted.values()) == 7 * 3 * 2 * 4 * 5 * (4 + 5)


def test_the_worst_are_rules_of_a_recipe() -> None:
    model = residual()
    worst = fxq.sensitivity(model, BATCHES).worst(2)
    assert worst[0].value <= worst[1].value
    recipe = fxq.recipe("tensorrt").with_rules(*((path, None) for group in worst for path in group.paths))
    left = fxq.sensitivity(model, BATCHES, recipe=recipe)
    assert len(left) == 1


def test_a_metric_takes_the_place_of_decibels() -> None:
    model, x = residual(), torch.cat(BATCHES)
    calls: list[bool] = []

    def metric(gm: Callable[[Tensor], Tensor]) -> Tensor:
        calls.append(torch.is_grad_enabled() or gm.training)
        return -(gm(x) - model(x)).abs().mean()

    found = fxq.sensitivity(model, BATCHES, metric, mode="one_float")
    with torch.no_grad():
        for group in found:
            expected = -(prepared_again(model, "tensorrt", list(group.paths), BATCHES) - model(x)).abs().mean()
            assert group.value == pytest.approx(float(expected), rel=1e-3)
    assert found.worst(1)[0].value == max(group.value for group in found)
    assert len(calls) == len(found) + 2  # all in float, and all quantized
    assert not any(calls)
    assert found.notes == ()


def test_corrected_biases_go_back_with_their_group() -> None:
    model = residual()
    gm = fxq.prepare(model, images(2), fxq.recipe("tensorrt").with_pass("correct_bias"))
    fxq.calibrate(gm, fxq.Data(BATCHES, held_out=0))
    board = make_switchboard(gm)
    x = torch.cat(BATCHES)
    with torch.no_grad():
        board.leave_in_float([])
        assert torch.equal(board.gm(x), gm(x))
        board.leave_in_float(board.groups)
        torch.testing.assert_close(board.gm(x), model(x))


def test_a_metric_that_tells_nothing_is_named() -> None:
    found = fxq.sensitivity(residual(), BATCHES, lambda gm: 0.5)
    assert found.notes == ("the metric is 0.5 for every model that it was given: it tells nothing about them",)


def test_a_prepared_model_is_not_changed() -> None:
    gm = calibrated(residual())
    before, code = snapshot(gm), gm.code
    fxq.sensitivity(gm, BATCHES)
    assert snapshot(gm) == before
    assert gm.code == code


def test_a_generator_serves_for_calibration_and_measuring() -> None:
    found = fxq.sensitivity(residual(), (batch for batch in BATCHES))
    assert found.quantized_value == fxq.sensitivity(residual(), BATCHES).quantized_value


def test_data_without_a_number_of_samples_holds_out_as_many_as_in_quantize() -> None:
    data = as_kept_data(fxq.Data(iter(images(300).split(10))), None, progress=False)
    data.begin(keep=True, hold_out=True)
    gm = fxq.prepare(residual(), images(2))
    data.feed(gm)
    assert sum(one.samples or 0 for one in data.judging(gm)) == 32  # of 64 samples it would be 8


def raises(gm: nn.Module) -> float:
    raise KeyError("label")


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: fxq.sensitivity(m, BATCHES, mode="one"), fxq.InputError, "mode is 'one_quantized' or 'one_float'"),
        (lambda m: fxq.sensitivity(m, BATCHES, 3), fxq.MetricError, "metric is a function of a model.*got int"),
        (
            lambda m: fxq.sensitivity(m, BATCHES, raises),
            fxq.MetricError,
            "raised KeyError on the model with all groups",
        ),
        (lambda m: fxq.sensitivity(m, BATCHES, lambda gm: math.nan), fxq.MetricError, "returned nan for the model"),
        (lambda m: fxq.sensitivity(m, BATCHES, lambda gm: "0.9"), fxq.MetricError, "returned '0.9' for the model"),
        (lambda m: fxq.sensitivity(m, BATCHES, lambda gm: None), fxq.MetricError, "returned None.*one number"),
        (
            lambda m: fxq.sensitivity(m, BATCHES, lambda gm: gm(BATCHES[0])),
            fxq.MetricError,
            "it must return one number",
        ),
        (lambda m: fxq.sensitivity(m, []), fxq.CalibrationError, "there was no batch"),
        (lambda m: fxq.sensitivity(fxq.prepare(m), BATCHES), fxq.CalibrationError, "3 quantizers have none"),
        (lambda m: fxq.sensitivity(fxq.convert(calibrated(m)), BATCHES), fxq.StageError, "stage 'lowered'"),
        (
            lambda m: fxq.sensitivity(nn.Sequential(m, Top()).eval(), BATCHES),
            fxq.MetricError,
            "no floating-point tensor",
        ),
        (
            lambda m: fxq.sensitivity(calibrated(m), [torch.full_like(BATCHES[0], math.nan)]),
            fxq.MetricError,
            "float model's 'output' holds no number but NaN",
        ),
        (
            lambda m: fxq.sensitivity(nn.Sequential(m, Infinite()).eval(), BATCHES),
            fxq.MetricError,
            "float model's outputs hold no finite number",
        ),
    ],
    ids=[
        "mode",
        "no-function",
        "raises",
        "nan",
        "text",
        "none",
        "many",
        "empty",
        "uncalibrated",
        "converted",
        "integers",
        "nan-batch",
        "infinite",
    ],
)
def test_what_cannot_be_measured_is_refused(
    call: Callable[[nn.Module], Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        call(residual())


@pytest.mark.parametrize("mode", ["one_quantized", "one_float"])
def test_an_interrupt_leaves_what_was_measured(mode: Any) -> None:
    model, x = residual(), torch.cat(BATCHES)
    calls = itertools.count(1)

    def metric(gm: Callable[[Tensor], Tensor]) -> Tensor:
        if next(calls) == 5:  # the third of three groups: before them all in float, and all quantized
            raise KeyboardInterrupt
        return -(gm(x) - model(x)).abs().mean()

    found = fxq.sensitivity(model, BATCHES, metric, mode=mode)
    whole = fxq.sensitivity(model, BATCHES, metric, mode=mode)
    assert found.groups == whole.groups[:2]
    assert (found.float_value, found.quantized_value) == (whole.float_value, whole.quantized_value)
    assert found.notes == ("interrupted: 2 of 3 groups were measured",)
    assert found.notes[0] in found.table()


class Infinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * math.inf


class WithInfinite(nn.Module):
    """Two outputs, of which one has no finite number."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.infinite = residual(), Infinite()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.net(x)
        return x, self.infinite(x)


def test_an_interrupt_keeps_what_is_said_about_the_decibels() -> None:
    prepared = calibrated(WithInfinite().eval())
    board, samples = make_switchboard(prepared), read_samples(prepared, fxq.Data(BATCHES))

    def before_each(index: int) -> None:
        if index == 2:
            raise KeyboardInterrupt

    with pytest.raises(PartlyMeasuredError) as interrupt:
        measure_groups(board, samples, None, "one_quantized", before_each)
    assert interrupt.value.found.notes == (
        "interrupted: 2 of 3 groups were measured",
        "infinity in the float model's 'output_1' counts for nothing in the dB",
    )


def test_an_interrupt_before_anything_is_known_is_one() -> None:
    calls = itertools.count(1)

    def metric(gm: Callable[[Tensor], Tensor]) -> float:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        fxq.sensitivity(residual(), BATCHES, metric)


def test_some_output_that_is_infinite_counts_for_nothing_and_is_said() -> None:
    found = fxq.sensitivity(WithInfinite().eval(), BATCHES)
    assert found.quantized_value == fxq.sensitivity(residual(), BATCHES).quantized_value
    assert found.notes == ("infinity in the float model's 'output_1' counts for nothing in the dB",)


class Top(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


def test_the_table_shows_the_most_sensitive_first() -> None:
    table = fxq.sensitivity(residual(), BATCHES).table().splitlines()
    assert table[0].startswith("all quantized: ")
    assert table[0].endswith("in float: exact")
    assert next(line.split("│")[1].strip() for line in table if line.startswith("│")) == "fc"


def test_some_nan_counts_for_nothing_and_is_said() -> None:
    whole = fxq.sensitivity(calibrated(residual()), BATCHES[:1])
    found = fxq.sensitivity(calibrated(residual()), [BATCHES[0], torch.full_like(BATCHES[0], math.nan)])
    assert [group.value for group in found] == pytest.approx([group.value for group in whole])
    assert found.notes == ("NaN in the float model's 'output' counts for nothing in the dB",)


def test_a_metric_needs_no_floating_point_output() -> None:
    found = fxq.sensitivity(nn.Sequential(residual(), Top()).eval(), BATCHES, lambda gm: float(gm(BATCHES[0]).sum()))
    assert math.isfinite(found.float_value)


def test_an_error_where_the_float_output_is_zero_is_no_exact_one() -> None:
    """Of two layers that are alike, the difference is zero in float, and not where one of them is quantized."""

    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.load_state_dict(self.first.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) - self.second(x)

    found = fxq.sensitivity(Difference().eval(), [torch.randn(8, 4, generator=torch.Generator().manual_seed(0))])
    assert [group.value for group in found] == [-math.inf, -math.inf]
