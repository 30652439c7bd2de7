"""round_weights: each layer's weights are rounded for its inputs (GPTQ), on the grid that they have."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.graph.stored import weight_quantizers
from fxq.state import find_state
from fxq_passes.accuracy.rounding import Grid, error, round_for_inputs

FOUR_BITS = fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0))
PLAIN = fxq.recipe("tensorrt").replace(calibrator="max", default=FOUR_BITS)
RECIPE = PLAIN.with_pass("round_weights")


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(rows: int, inputs: int, seed: int = 0, rank: int = 4) -> Tensor:
    """Return inputs that depend on each other, as those of real layers do: what rounding one does, others undo."""
    return seeded(rows, rank, seed=seed) @ seeded(rank, inputs, seed=9) + 0.2 * seeded(rows, inputs, seed=seed + 1)


def slow_gptq(weight: Tensor, covariance: Tensor, scale: float, highest: int) -> Tensor:
    """One output at a time in float64: after each rounding, the free weights are solved for anew."""
    damped = covariance + 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance)).double()
    order = damped.diagonal().argsort(descending=True)
    rounded = torch.empty_like(weight)
    for row in range(len(weight)):
        free = weight[row].clone()
        for place, column in enumerate(order.tolist()):
            code = (free[column] / scale).round().clamp(-highest - 1, highest)
            rounded[row, column] = code * scale
            rest = order[place + 1 :]
            # Least squares: the free columns take up the error of those that are fixed.
            if len(rest):
                fixed = order[: place + 1]
                difference = rounded[row, fixed] - weight[row, fixed]
                solved = torch.linalg.solve(damped[rest][:, rest], damped[rest][:, fixed] @ difference)
                free[rest] = weight[row, rest] - solved
    return rounded


def test_the_sweep_is_that_of_a_slow_float64_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxq_passes.accuracy import rounding

    monkeypatch.setattr(rounding, "_MOVES", 0)
    monkeypatch.setattr(rounding, "_BLOCK", 5)
    weight, inputs = seeded(3, 12).double(), correlated(200, 12).double()
    covariance = inputs.T @ inputs / 200
    shape = (1, 3, 12)
    grid = Grid(torch.full(shape, 0.3, dtype=torch.float64), torch.zeros(shape).double(), -8, 7)
    found = round_for_inputs(weight.unsqueeze(0), covariance.unsqueeze(0), grid)[0]
    torch.testing.assert_close(found, slow_gptq(weight, covariance, 0.3, 7), rtol=0, atol=1e-12)


def test_moves_of_single_codes_never_raise_the_error_and_end_where_none_lowers_it() -> None:
    weight, inputs = seeded(1, 4, 10).double(), correlated(200, 10).double()
    covariance = (inputs.T @ inputs / 200).unsqueeze(0)
    grid = Grid(torch.full_like(weight, 0.3), torch.zeros_like(weight), -8, 7)
    swept = slow_gptq(weight[0], covariance[0], 0.3, 7).unsqueeze(0)
    damped = covariance + 0.01 * covariance[0].diagonal().mean() * torch.eye(10).double()
    found = round_for_inputs(weight, covariance, grid)
    assert bool((error(weight, found, damped) <= error(weight, swept, damped) + 1e-12).all())
    for column in range(10):
        for step in (-0.3, 0.3):
            moved = found.clone()
            moved[..., column] += step
            inside = moved[..., column].abs() < 0.3 * 7.5
            worse = error(weight, moved, damped) >= error(weight, found, damped) - 1e-9
            assert bool((worse | ~inside).all())


def test_the_error_is_that_of_the_outputs() -> None:
    weight, inputs = seeded(2, 3, 5).double(), seeded(2, 40, 5, seed=1).double()
    rounded = weight.round()
    outputs = inputs @ (rounded - weight).mT
    found = error(weight, rounded, inputs.mT @ inputs)
    torch.testing.assert_close(found, outputs.square().sum(1))


def test_codes_stay_within_their_bounds_and_zero_points_count() -> None:
    weight, inputs = seeded(1, 6, 9) * 3, correlated(100, 9)
    grid = Grid(torch.full_like(weight, 0.25), torch.full_like(weight, 3.0), 0, 15)
    found = round_for_inputs(weight, (inputs.T @ inputs / 100).unsqueeze(0), grid)
    codes = found / 0.25 + 3
    torch.testing.assert_close(codes, codes.round())
    assert float(codes.min()) == 0
    assert float(codes.max()) == 15


class Images(nn.Module):
    """A convolution, a depthwise one, a grouped one, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, groups=2)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.conv(x).relu()).relu()
        return self.fc(self.grouped(x).relu().flatten(1))


def images(count: int = 48, seed: int = 0) -> Tensor:
    return correlated(count, 3 * 49, seed).reshape(count, 3, 7, 7)


def images_model() -> nn.Module:
    torch.manual_seed(0)
    return Images().eval()


def calibrated(model: nn.Module, x: Tensor, recipe: fxq.Recipe = RECIPE) -> GraphModule:
    gm = fxq.prepare(model, x[:2], recipe)
    fxq.calibrate(gm, fxq.Data(x.split(20), held_out=0))
    return gm


def noise(model: nn.Module, gm: GraphModule, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - gm(x)).square().mean())


def entries(gm: GraphModule, kind: str) -> list[str]:
    return [entry.text for entry in find_state(gm).record.of("round_weights", kind)]  # type: ignore[union-attr]


def test_outputs_on_other_samples_are_closer_and_weights_lie_on_their_grid() -> None:
    model, x, fresh = images_model(), images(), images(seed=5)
    plain, gm = calibrated(model, x, PLAIN), calibrated(model, x)
    assert noise(model, gm, fresh) < 0.7 * noise(model, plain, fresh)
    assert sum("rounded for its inputs" in text for text in entries(gm, "edit")) == 4
    for path, weight, quantizer in weight_quantizers(gm):
        # Quantizing again changes nothing, within the range that rounding to nearest has.
        torch.testing.assert_close(quantizer(weight), weight, rtol=0, atol=1e-6)
        assert torch.equal(quantizer.amax, plain.get_submodule(path).weight_quantizer.amax)


def test_the_mean_of_the_outputs_stays_where_it_was() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 6, bias=False)).eval(), correlated(64, 12) + 3
    plain, gm = calibrated(model, x, PLAIN), calibrated(model, x)
    with torch.no_grad():
        assert not torch.equal(plain(x), gm(x))
        torch.testing.assert_close(gm(x).mean(0), plain(x).mean(0), rtol=0, atol=1e-4)


def test_wide_layers_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    import fxq_passes.round_weights as module

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.Linear(6, 6)).eval()
    x, fresh = correlated(128, 64), correlated(128, 64, seed=7)
    whole = calibrated(model, x)
    monkeypatch.setattr(module, "_WIDEST", 40)  # two of 32
    gm = calibrated(model, x)
    assert not torch.equal(gm.get_submodule("0").weight, whole.get_submodule("0").weight)
    errors = [noise(model, one, fresh) for one in (gm, calibrated(model, x, PLAIN))]
    assert errors[0] < 0.7 * errors[1]
    for _, weight, quantizer in weight_quantizers(gm):
        torch.testing.assert_close(quantizer(weight), weight, rtol=0, atol=1e-6)


def test_int4_in_blocks_is_rounded_for_inputs_where_there_are_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(80, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x, fresh = correlated(96, 80, rank=12), correlated(96, 80, seed=7, rank=12)
    recipe = fxq.recipe("weight_only_int4")
    plain = fxq.prepare(model, x[:2], recipe)
    gm = fxq.prepare(model, x[:2], recipe.with_accuracy("best"))
    fxq.calibrate(gm, fxq.Data([x], held_out=0))
    assert noise(model, gm, fresh) < 0.6 * noise(model, plain, fresh)
    for _, weight, quantizer in weight_quantizers(gm):
        torch.testing.assert_close(quantizer(weight), weight, rtol=0, atol=1e-6)


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)  # type: ignore[no-any-return]


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc(x).relu())


SKIPPED: dict[str, tuple[Callable[[], nn.Module], fxq.Recipe, str]] = {
    "float weight": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), RECIPE.with_rules(("*", None)),
        "its weight is not quantized",
    ),
    "called twice": (CalledTwice, RECIPE, "'fc' is called more than once"),
    "transposed": (
        lambda: nn.Sequential(nn.Unflatten(1, (8, 1, 1)), nn.ConvTranspose2d(8, 4, 2)), RECIPE, "QuantConvTranspose2d"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "recipe", "reason"), SKIPPED.values(), ids=SKIPPED.keys())
def test_what_cannot_be_rounded_says_why(make: Callable[[], nn.Module], recipe: fxq.Recipe, reason: str) -> None:
    x = seeded(8, 8)
    gm = fxq.prepare(make().eval(), x, recipe)
    before = {path: value.clone() for path, value in gm.named_parameters()}
    fxq.calibrate(gm, [x])
    assert all(torch.equal(before[path], value) for path, value in gm.named_parameters())
    assert all(text.startswith("rounded to nearest: ") and reason in text for text in entries(gm, "skip"))
    assert entries(gm, "skip")


def test_inputs_without_variance_leave_weights_as_they_are() -> None:
    model, x = nn.Sequential(nn.Linear(8, 4)).eval(), torch.ones(16, 8)
    with pytest.warns(UserWarning, match="single value"):
        gm = calibrated(model, x)
    assert entries(gm, "skip") == ["rounded to nearest: no rounding has a lower error"]


@pytest.mark.filterwarnings("ignore:1 quantizer got a single value")
@pytest.mark.parametrize("level", [0.0, 0.37, 100.0])
def test_a_layer_that_reads_the_same_always_is_left_alone(level: float) -> None:
    """As behind a norm whose weight is zero, where training begins: its bias is what is read, whatever came in."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(12)
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.copy_(level * seeded(12))
    model, x = Residual(nn.Sequential(norm, nn.Linear(12, 12))).eval(), correlated(64, 12)
    plain, gm = calibrated(model, x, PLAIN), calibrated(model, x)
    assert torch.equal(gm.get_submodule("branch.1").weight, plain.get_submodule("branch.1").weight)
    assert entries(gm, "skip") == ["rounded to nearest: no rounding has a lower error"]


def test_a_dead_channel_is_rounded_to_nearest_and_others_for_their_inputs() -> None:
    model, x, fresh = images_model(), images(), images(seed=5)
    with torch.no_grad():
        model.conv.bias[2:4] = torch.tensor([-100.0, 100.0])  # type: ignore
        model.conv.weight[3] = 0  # type: ignore
    plain, gm = calibrated(model, x, PLAIN), calibrated(model, x)
    rounded, nearest = (one.get_submodule("depthwise").quantized_weight() for one in (gm, plain))  # type: ignore
    assert torch.equal(rounded[2:4], nearest[2:4])
    assert not torch.equal(rounded, nearest)
    assert noise(model, gm, fresh) < 0.9 * noise(model, plain, fresh)


def test_what_cannot_be_a_covariance_rounds_nothing() -> None:
    """Its pivot is 0, with the damping, and a matrix that has one is not inverted."""
    weight, covariance = seeded(1, 3, 2), torch.diag(torch.tensor([0.01, -0.01])).unsqueeze(0)
    assert round_for_inputs(weight, covariance, Grid(torch.ones_like(weight), torch.zeros_like(weight), -8, 7)) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=["double", "half", "bfloat16"])
def test_weights_of_any_precision(dtype: torch.dtype) -> None:
    model, x, fresh = images_model().to(dtype), images().to(dtype), images(seed=5).to(dtype)
    gm = calibrated(model, x)
    assert gm.get_submodule("conv").weight.dtype == dtype
    assert noise(model, gm, fresh) < 0.8 * noise(model, calibrated(model, x, PLAIN), fresh)


def test_images_of_different_sizes_and_one_without_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    batches = [seeded(4, 3, 12, 12), seeded(2, 3, 9, 15, seed=1)]
    gm = fxq.prepare(model, batches[0], RECIPE)
    fxq.calibrate(gm, fxq.Data(batches, held_out=0))
    assert sum("rounded for its inputs" in text for text in entries(gm, "edit")) == 2
    single = fxq.prepare(model, batches[0][0], RECIPE)
    fxq.calibrate(single, fxq.Data([batches[0][0]], forward=lambda m, x: m(x), held_out=0))
    assert sum("rounded for its inputs" in text for text in entries(single, "edit")) == 2
