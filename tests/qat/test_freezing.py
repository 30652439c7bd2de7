"""What is frozen from a step on, training that ruins a range and stops, and the schedule of learning rates."""

import copy
from typing import Any

import pytest
import torch
from support.small import images, residual
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq

LEARNED = fxq.QConfig(fxq.QuantDescriptor(learn_amax=True), fxq.QuantDescriptor(axis=0, learn_amax=True))
AVERAGED = fxq.QConfig(fxq.QuantDescriptor(calibrator="moving_average"))


def ready(config: fxq.QConfig = fxq.QConfig()) -> GraphModule:  # noqa: B008 - frozen
    model = residual().train()
    for seed in range(30):
        model(images(16, seed))
    prepared = fxq.prepare(model.eval(), images(2), fxq.recipe("tensorrt").replace(default=config), qat=True)
    fxq.calibrate(prepared, images(16).split(8), progress=False)
    return prepared.train()


def step(model: nn.Module, factor: float = 1.0, x: Tensor | None = None) -> None:
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], 0.1)
    optimizer.zero_grad()
    (model(images(8) if x is None else x).square().mean() * factor).backward()
    optimizer.step()


def ranges(prepared: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in prepared.state_dict().items() if name.endswith("_amax")}


def changed(before: dict[str, Tensor], prepared: nn.Module) -> set[str]:
    return {name for name, value in ranges(prepared).items() if not torch.equal(value, before[name])}


def test_frozen_batch_norms_keep_their_statistics_and_training_computes_what_evaluation_does() -> None:
    prepared = ready()
    fxq.freeze_batchnorm(prepared)
    before = prepared.get_buffer("bn.running_mean").clone()
    prepared.train()
    step(prepared)
    torch.testing.assert_close(prepared.get_buffer("bn.running_mean"), before, rtol=0, atol=0)
    assert float(prepared.get_parameter("bn.weight").grad.abs().max()) > 0
    prepared.dropout.eval()
    torch.testing.assert_close(prepared(images(4)), copy.deepcopy(prepared).eval()(images(4)), rtol=0, atol=0)
    fxq.freeze_batchnorm(prepared, frozen=False)
    step(prepared)
    assert not torch.equal(prepared.get_buffer("bn.running_mean"), before)
    fxq.convert(prepared)


def test_a_batch_norm_that_no_layer_folds_is_frozen_too() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 2, 1)).eval()
    prepared = fxq.prepare(model, images(2), qat=True)
    fxq.calibrate(prepared, [images(8)], progress=False)
    fxq.freeze_batchnorm(prepared)
    copied = copy.deepcopy(prepared.train())
    for frozen in (prepared, copied):
        frozen.train()(images(8))
        assert int(frozen.get_buffer("0.num_batches_tracked")) == 0
    fxq.freeze_batchnorm(prepared, frozen=False)
    prepared(images(8))
    assert int(prepared.get_buffer("0.num_batches_tracked")) == 1


@pytest.mark.parametrize(
    ("config", "moving"),
    [
        (
            fxq.QConfig(),
            {"conv1._weight_quantizer._amax", "conv2._weight_quantizer._amax", "fc._weight_quantizer._amax"},
        ),
        (AVERAGED, "all"),
        (LEARNED, "all"),
    ],
    ids=["weights follow", "averages go on", "learned"],
)
def test_ranges_move_until_they_are_frozen(config: fxq.QConfig, moving: Any) -> None:
    prepared = ready(config)
    before = ranges(prepared)
    for seed in range(3):
        step(prepared, 10, images(8, seed))
    prepared(images(8))  # which measures the weight that the last step left
    assert changed(before, prepared) == (set(before) if moving == "all" else moving)
    fxq.freeze_ranges(prepared)
    before = ranges(prepared)
    for seed in range(3):
        step(prepared, 10, images(8, seed))
    prepared.eval()(images(8))
    assert changed(before, prepared) == set()
    fxq.freeze_ranges(prepared, frozen=False)
    prepared.train()
    step(prepared, 10, images(8, 9))
    prepared(images(8))
    assert changed(before, prepared)


def test_an_average_moves_by_a_hundredth_and_in_training_alone() -> None:
    quantizer = fxq.TensorQuantizer(fxq.QuantDescriptor(calibrator="moving_average"))
    quantizer.enable_tracking()
    quantizer(torch.tensor([1.0, -2.0]))
    quantizer(torch.tensor([12.0]))
    torch.testing.assert_close(quantizer.amax, torch.tensor(2.1))
    quantizer.eval()(torch.tensor([100.0]))
    torch.testing.assert_close(quantizer.amax, torch.tensor(2.1))


def test_a_range_that_is_assigned_or_fitted_by_a_method_stays() -> None:
    prepared = ready(fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0)))
    fxq.calibrate_weights(prepared, method="mse")
    before = ranges(prepared)
    step(prepared, 10)
    prepared(images(8))
    assert changed(before, prepared) == set()


def test_a_converted_model_has_the_range_of_the_last_weight() -> None:
    prepared = ready()
    step(prepared, 100)
    converted = fxq.convert(prepared)
    weight = prepared.eval().get_submodule("fc").weight
    torch.testing.assert_close(converted.get_buffer("fc.weight_scale"), weight.detach().abs().amax(1) / 127)


def test_a_range_that_training_makes_negative_is_named() -> None:
    prepared = ready(LEARNED)
    prepared.get_parameter("conv2_input_quantizer._amax").data.fill_(-0.5)
    with pytest.raises(fxq.RangeError, match=r"'conv2_input_quantizer' -0.5: the weights are finite, so quantizing"):
        prepared(images(2))
    prepared.eval()(images(2))  # to look at
    with pytest.raises(fxq.RangeError, match=r"'conv2_input_quantizer' -0\.5"):  # where it was the last step
        fxq.convert(prepared)


def test_a_learned_range_that_training_closes_is_named_and_one_that_began_at_zero_is_not() -> None:
    prepared = ready(LEARNED).train()
    quantizer = prepared.get_submodule("conv2_input_quantizer")
    quantizer.amax = 0.0  # calibration saw zeros alone
    prepared(images(2))
    quantizer.amax = 1.0
    prepared.get_parameter("conv2._weight_quantizer._amax").data[0] = 0.0  # a channel that is off
    prepared(images(2))
    prepared.get_parameter("conv2_input_quantizer._amax").data.zero_()
    with pytest.raises(fxq.RangeError, match=r"'conv2_input_quantizer' 0: the weights are finite"):
        prepared(images(2))


@pytest.mark.parametrize("config", [fxq.QConfig(), LEARNED], ids=["tracked", "learned"])
def test_a_step_that_fails_in_float_as_well_is_told_apart(config: fxq.QConfig) -> None:
    prepared = ready(config)
    step(prepared, float("nan"))
    if config is not LEARNED:
        prepared(images(2))  # measures the weight
    with pytest.raises(fxq.RangeError, match=r"fails in float as well: its loss or gradients were not finite"):
        prepared(images(2))


def test_an_input_that_held_nan_is_told_apart() -> None:
    prepared = ready(LEARNED)
    step(prepared, x=images(8) * float("nan"))
    with pytest.raises(fxq.RangeError, match=r"fails in float as well: the input of the call before held NaN"):
        prepared(images(2))


def test_what_is_converted_is_not_watched() -> None:
    assert not fxq.convert(ready())._forward_pre_hooks


def test_the_schedule_falls_half_a_cosine_from_one_percent_to_a_hundredth_of_one() -> None:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": 0.5}], lr=0.1)
    schedule = fxq.qat_schedule(optimizer, total_steps=100)
    rates = []
    for _ in range(101):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    found = torch.tensor(rates)
    torch.testing.assert_close(found[0], torch.tensor([0.001, 0.005]))
    torch.testing.assert_close(found[50], torch.tensor([0.00101, 0.00505]) / 2)
    torch.testing.assert_close(found[100], torch.tensor([0.00001, 0.00005]))
    again = fxq.qat_schedule(optimizer, total_steps=7)
    again.load_state_dict(schedule.state_dict())
    assert again.get_last_lr() == schedule.get_last_lr()
    assert again.lr_lambdas[0].total_steps == 100


@pytest.mark.parametrize("options", [{"total_steps": 0}, {"total_steps": 1.5}, {"total_steps": 9, "first": 2.0}])
def test_a_schedule_of_nothing_is_refused(options: Any) -> None:
    with pytest.raises(fxq.InputError, match=r"total_steps must be a positive integer|first and last are shares"):
        fxq.qat_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), **options)


def test_only_what_is_prepared_is_frozen() -> None:
    with pytest.raises(fxq.StageError, match="freeze_batchnorm"):
        fxq.freeze_batchnorm(residual())
