"""correct_bias: the mean error of each layer's outputs goes into its bias, layer by layer."""

import pytest
import torch
from support.small import images
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxq
from fxq_passes import correct_bias

# 4 bits, so that rounding moves the mean of a layer visibly.
FOUR_BITS = fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0))
PLAIN = fxq.recipe("tensorrt").replace(calibrator="max", default=FOUR_BITS)
RECIPE = PLAIN.with_pass("correct_bias", behind_rectifier=False, only_certain=False)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(216, 5)).eval()


def corrected(model: nn.Module, x: Tensor, recipe: fxq.Recipe = RECIPE) -> GraphModule:
    gm = fxq.prepare(model, x[:2], recipe)
    fxq.calibrate(gm, fxq.Data(x.split(5), held_out=0))
    return gm


def fake_quantized(x: Tensor, amax: Tensor, highest: int) -> Tensor:
    """Symmetric, in float64: amax is the highest code."""
    step = amax / highest
    return (x / step).round().clamp(-highest - 1, highest) * step


def test_biases_are_those_of_a_slow_float64_reference() -> None:
    model, x = net(), images(12)
    gm = corrected(model, x)
    in_float, quantized = x.double(), x.double()
    for index, module in enumerate(model.double()):
        if not isinstance(module, nn.Conv2d | nn.Linear):
            in_float, quantized = module(in_float), module(quantized)
            continue
        function = F.linear if isinstance(module, nn.Linear) else module._conv_forward
        zero = torch.zeros(module.weight.shape[0]).double()
        bias = zero if module.bias is None else module.bias.detach()
        amax_c = module.weight.detach().flatten(1).abs().amax(1).reshape(-1, *[1] * (module.weight.dim() - 1))
        weight = fake_quantized(module.weight.detach(), amax_c, 7)
        quantized = fake_quantized(quantized, in_float.abs().max(), 127)
        before = function(quantized, weight, bias)
        in_float = function(in_float, module.weight.detach(), bias)
        dims = [dim for dim in range(before.dim()) if dim != 1]
        expected = bias + in_float.mean(dims) - before.mean(dims)
        quantized = function(quantized, weight, expected)
        layer = gm.get_submodule(str(index))
        # float32 against float64; a value that rounds to another code moves a mean by less than 1e-4.
        torch.testing.assert_close(layer.bias.detach().double(), expected, rtol=0, atol=2e-4)
        assert float((expected - bias).abs().max()) > 1e-3  # there was something to correct


def test_the_mean_error_of_each_layer_is_gone() -> None:
    model, x = net(), images(12)
    gm = corrected(model, x)
    with torch.no_grad():
        error = (model(x) - gm(x)).mean(0)
    assert float(error.abs().max()) < 1e-5


@pytest.mark.parametrize("rectifier", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.3, 0.5)], ids=["relu", "relu6", "clip"])
def test_the_mean_behind_a_rectifier_is_kept(rectifier: nn.Module) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(1, 6, 3), rectifier).eval(), images(12)
    gm = corrected(model, x, PLAIN.with_pass("correct_bias", only_certain=False))
    plain = corrected(model, x, RECIPE)
    with torch.no_grad():
        errors = [(model(x) - other(x)).mean((0, 2, 3)).abs().max() for other in (gm, plain)]
    # Newton's method on a piecewise linear mean stops within a fraction of a sample's share of it.
    assert float(errors[0]) < 1e-4 < float(errors[1])


def test_a_channel_that_the_rectifier_switches_off_stays_off() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU()).eval(), images(12)
    model[0].bias.data[2] = -50.0
    gm = corrected(model, x, PLAIN.with_pass("correct_bias"))
    with torch.no_grad():
        assert float(gm(x)[:, 2].abs().max()) == 0
        assert abs(float(gm.get_submodule("0").bias[2]) + 50) < 1


def test_what_the_samples_leave_to_chance_is_not_corrected() -> None:
    """The shift shrinks by 1 - s^2 / m^2: m the mean error, s its standard error over the samples."""
    model, x = net(), images(12)
    certain = corrected(model, x, PLAIN.with_pass("correct_bias", behind_rectifier=False))
    first = model[0]
    with torch.no_grad():
        step = x.abs().max() / 127
        quantized = (x / step).round() * step
        amax_c = first.weight.abs().amax((1, 2, 3), keepdim=True)
        weight = (first.weight / (amax_c / 7)).round() * (amax_c / 7)
        errors = (first(x) - first._conv_forward(quantized, weight, first.bias)).mean((2, 3)).double()
    mean_c, standard_error_c = errors.mean(0), errors.std(0) / len(errors) ** 0.5
    share_c = (1 - (standard_error_c / mean_c) ** 2).clamp(min=0)
    assert 0 < float(share_c.max()) < 1  # some of it is chance
    found = certain.get_submodule("0").bias - first.bias
    torch.testing.assert_close(found.detach().double(), mean_c * share_c, rtol=0, atol=1e-4)


def test_batches_count_by_their_size() -> None:
    """12 samples in batches of 5, 5 and 2 give the same as in one batch."""
    model, x = net(), images(12)
    in_parts = corrected(model, x)
    whole = fxq.prepare(model, x[:2], RECIPE)
    fxq.calibrate(whole, fxq.Data([x], held_out=0))
    torch.testing.assert_close(in_parts.get_submodule("5").bias, whole.get_submodule("5").bias, rtol=0, atol=1e-5)


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc(x).relu())


def test_a_layer_that_is_called_twice_is_moved_by_the_mean_error_over_both_calls() -> None:
    torch.manual_seed(0)
    model, x = CalledTwice().eval(), torch.randn(16, 4) + 1
    gm = corrected(model, x)
    as_called = fxq.prepare(model, x[:2], PLAIN)
    fxq.calibrate(as_called, fxq.Data(x.split(5), held_out=0))
    errors = [first - second for first, second in zip(both_calls(model, x), both_calls(as_called, x), strict=True)]
    found = (gm.get_submodule("fc").bias - model.fc.bias).detach()
    # float32: sums in another order.
    torch.testing.assert_close(found, torch.cat(errors).mean(0), rtol=0, atol=1e-6)
    assert float(found.abs().max()) > 1e-3


def both_calls(model: nn.Module, x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    handle = model.get_submodule("fc").register_forward_hook(lambda *call: found.append(call[-1]))
    with torch.no_grad():
        model(x)
    handle.remove()
    return found


class Pyramid(nn.Module):
    """A head over several sizes behind a layer that is called once; a call of each level has its rectifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.body(x)
        return [self.last(F.relu(self.head(level))) for level in (x, F.avg_pool2d(x, 2))]


def test_a_head_over_several_levels_is_corrected_behind_its_rectifier() -> None:
    torch.manual_seed(0)
    model, x = Pyramid().eval(), images(16)
    in_float = model(x)
    plain = fxq.prepare(model, x[:2], PLAIN)
    fxq.calibrate(plain, fxq.Data(x.split(5), held_out=0))
    gm = corrected(model, x, PLAIN.with_pass("correct_bias"))

    def mean_error(found: list[Tensor]) -> float:
        errors = [(one - other).movedim(1, -1).flatten(0, -2) for one, other in zip(in_float, found, strict=True)]
        return float(torch.cat(errors).mean(0).detach().norm())

    assert mean_error(gm(x)) < 0.1 * mean_error(plain(x))
    assert not gm.meta["fxq"].record.of("correct_bias", "skip")


def test_layers_of_several_calls_cost_a_walk_each_and_so_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correct_bias, "_MOST_WALKS", 1)
    gm = corrected(Pyramid().eval(), images(4))
    assert {entry.node for entry in gm.meta["fxq"].record.of("correct_bias", "skip")} == {"last", "last_1"}


class SharedBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.bias = self.one.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())


SKIPPED = {
    "float weight": (nn.Sequential(nn.Linear(4, 4)), RECIPE.with_rules(("0", None)), "its weight is not quantized"),
    "float input": (
        nn.Sequential(nn.Linear(4, 4)),
        fxq.recipe("weight_only").with_pass("correct_bias"),
        "its input is not quantized",
    ),
    "shared bias": (SharedBias(), RECIPE, "2 layers share its bias"),
}


@pytest.mark.parametrize(("model", "recipe", "reason"), SKIPPED.values(), ids=SKIPPED.keys())
def test_a_layer_that_cannot_be_corrected_is_left_alone(model: nn.Module, recipe: fxq.Recipe, reason: str) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    gm = fxq.prepare(model.eval(), x, recipe)
    before = {path: value.clone() for path, value in gm.named_parameters()}
    fxq.calibrate(gm, [x])
    assert all(torch.equal(before[path], value) for path, value in gm.named_parameters())
    assert {entry.text for entry in gm.meta["fxq"].record.of("correct_bias", "skip")} == {reason}


def test_one_sample_without_batch_dimension_is_corrected_by_channel() -> None:
    x = images(1)[0]
    gm = corrected(nn.Sequential(nn.Conv2d(1, 3, 3)).eval(), x)
    assert gm.get_submodule("0").bias.shape == (3,)
