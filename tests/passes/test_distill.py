"""distill: biases, ranges and codes are trained on the float model's answers, and kept where unseen samples gain."""

from typing import Any

import pytest
import torch
from support.small import images
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.state import find_state

# 4 bits, so that there is much to gain.
FOUR_BITS = fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0))
TRAINED = {"bias_rate": 3e-3, "range_rate": 3e-3, "max_steps": 40}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.two(self.one(x).relu())
        return self.fc(x.relu().flatten(1))


class Tokens(nn.Module):
    """Integer inputs and a mask of -10000 that is added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.query, self.value, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(ids)
        scores = self.query(x) @ x.transpose(1, 2) / 4 + (1 - mask[:, None]) * -10000.0
        x = x + self.out(torch.softmax(scores, -1) @ self.value(x))
        return x.mean(1)


def net(model: type[nn.Module] = Residual) -> nn.Module:
    torch.manual_seed(0)
    return model().eval()


def recipe(target: str = "tensorrt", **options: Any) -> fxq.Recipe:
    plain = fxq.recipe(target).replace(calibrator="max", default=FOUR_BITS)
    return plain.with_pass("distill", **{**TRAINED, **options})


def calibrated(model: nn.Module, batches: Any, recipe: fxq.Recipe) -> tuple[GraphModule, fxq.CalibrationReport]:
    gm = fxq.prepare(model, batches[0], recipe)
    return gm, fxq.calibrate(gm, fxq.Data(batches, progress=False), progress=False)


def untrained(model: nn.Module, batches: Any, target: str = "tensorrt") -> GraphModule:
    """Return the model calibrated on the same samples, without a budget for training."""
    return calibrated(model, batches, recipe(target, budget=0))[0]


def noise(model: nn.Module, gm: GraphModule, *x: Tensor) -> float:
    with torch.no_grad():
        return float((model(*x) - gm(*x)).square().sum())


def said(gm: GraphModule, kind: str = "") -> list[str]:
    return [entry.text for entry in find_state(gm).record.of("distill", *([kind] if kind else []))]  # type: ignore[union-attr]


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_unseen_samples_gain(target: str) -> None:
    model, batches, unseen = net(), images(64).split(16), images(64, seed=2)
    plain = untrained(model, batches, target)
    trained, report = calibrated(model, batches, recipe(target))
    step = report.steps[-1]
    assert step.name == "distill"
    assert step.kept
    assert step.sqnr_after_db > step.sqnr_before_db
    assert noise(model, trained, unseen) < 0.85 * noise(model, plain, unseen)
    assert "bias: trained:" in said(trained, "edit")[0]


def test_no_sample_is_drawn_more_often_than_asked() -> None:
    gm = fxq.prepare(net(), images(2), recipe(max_rounds=3))
    fxq.calibrate(gm, fxq.Data(images(32).split(16), held_out=0), progress=False)
    assert said(gm, "edit")
    assert all("after 12 steps on 32 samples" in text for text in said(gm, "edit"))


def test_token_ids_and_masks_are_taken_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, (128, 6), generator=generator)
    mask = (torch.arange(6) < torch.randint(2, 7, (128, 1), generator=generator)).float()
    batches = list(zip(ids[:64].split(16), mask[:64].split(16), strict=True))
    model = net(Tokens)
    plain = untrained(model, batches)
    trained, report = calibrated(model, batches, recipe())
    assert report.steps[-1].kept
    assert said(trained, "edit")
    assert noise(model, trained, ids[64:], mask[64:]) < 0.95 * noise(model, plain, ids[64:], mask[64:])


def test_a_loader_of_single_samples_trains_as_batches_do() -> None:
    whole, _ = calibrated(net(), images(64).split(64), recipe())
    single, _ = calibrated(net(), images(64).split(1), fxq.Recipe.from_toml(recipe().to_toml()))
    assert said(single, "edit")
    assert said(whole, "edit")


def test_the_same_twice() -> None:
    one, _ = calibrated(net(), images(64).split(16), recipe())
    torch.rand(3)
    two, _ = calibrated(net(), images(64).split(16), recipe())
    assert all(torch.equal(one.state_dict()[name], value) for name, value in two.state_dict().items())


def test_trained_codes_are_stored_on_the_grid() -> None:
    plain = untrained(net(), images(64).split(16))
    gm = fxq.prepare(net(), images(2), recipe(bias_rate=0, range_rate=0, weight_rate=0.06))
    fxq.calibrate(gm, fxq.Data(images(64).split(16), held_out=0), progress=False)
    moved = [text for text in said(gm, "edit") if "codes moved" in text]
    assert moved
    assert not any("bias" in text or "range" in text for text in said(gm, "edit"))
    for path in ("stem", "one", "two", "fc"):
        layer, before = gm.get_submodule(path), plain.get_submodule(path)
        torch.testing.assert_close(layer.quantized_weight(), layer.weight, rtol=0, atol=1e-6)
        assert torch.equal(layer.weight_quantizer.amax, before.weight_quantizer.amax)
        scale = layer.weight_quantizer.scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
        steps = (layer.weight - before.quantized_weight()).detach() / scale
        assert float(steps.abs().max()) <= 1.001  # no code moved by more than one


def test_only_what_has_a_rate_is_trained() -> None:
    gm = fxq.prepare(net(), images(2), recipe(bias_rate=0))
    fxq.calibrate(gm, fxq.Data(images(64).split(16), held_out=0), progress=False)
    assert said(gm, "edit")
    assert all(text.startswith("range trained") for text in said(gm, "edit"))
    gm, _ = calibrated(net(), images(64).split(16), recipe(range_rate=0))
    assert said(gm, "edit")
    assert all(text.startswith("bias: trained") for text in said(gm, "edit"))


def test_a_range_that_begins_where_its_tensor_is_clipped_keeps_its_range() -> None:
    """Most values of a shifted tensor lie at the bound, which must stay a code."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Hardtanh(-0.5, 0.5), nn.Flatten(), nn.Linear(144, 4)).eval()
    clipped = fxq.prepare(model, images(16), recipe())
    fxq.calibrate(clipped, fxq.Data(images(64).split(16), held_out=0, progress=False))  # it is kept
    assert any(text.startswith("range not trained: it ends where") for text in said(clipped, "skip"))
    model[1] = nn.Tanh()
    other, _ = calibrated(model, images(64).split(16), recipe())
    assert not any(text.startswith("range not trained") for text in said(other, "skip"))


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fc(self.fc(x).relu()).relu())


def test_a_layer_called_twice_keeps_its_bias() -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    model = net(CalledTwice)
    gm, _ = calibrated(model, x.split(16), recipe())
    assert torch.equal(gm.get_submodule("fc").bias, model.fc.bias)  # type: ignore[union-attr]
    assert "not trained: 'fc' is called more than once" in said(gm, "skip")


def test_a_layer_in_float_is_left_alone() -> None:
    gm = fxq.prepare(net(), images(16), recipe(bias_rate=1e-3, range_rate=1e-3).with_rules(("fc", None)))
    fxq.calibrate(gm, fxq.Data(images(64).split(16), held_out=0, progress=False))  # it is kept
    assert "not trained: its weight is not quantized" in said(gm, "skip")


class Logarithm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(self.fc(x).relu())


class Centered(nn.Module):
    """Samples of a batch meet, so that it cannot be taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y - y.mean(0)


NOTHING = {
    "few samples": (nn.Sequential(nn.Linear(8, 4)), 6, {}, "there are fewer than 24 samples"),
    "no rates": (nn.Sequential(nn.Linear(8, 4)), 64, {"bias_rate": 0, "range_rate": 0}, "there is nothing to train"),
    "no layers": (nn.Sequential(nn.ReLU()), 64, {}, "there is nothing to train"),
    "no budget": (
        nn.Sequential(nn.Linear(8, 4)), 64, {"budget": 1e-6}, "the budget is enough for 0 steps, fewer than 20"
    ),
    "whole batches, of 8 samples": (  # 4 forwards of 4 outputs at 8 + 64 multiplications for each
        Centered(), 64, {"batch": 2, "budget": 10.5 * 8 * 4 * 288e-9},
        "the budget is enough for 10 steps, fewer than 20",
    ),
    "infinite outputs": (Logarithm(), 64, {}, "the outputs of the float model hold NaN or infinity"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "count", "options", "reason"), NOTHING.values(), ids=NOTHING.keys())
@pytest.mark.filterwarnings("ignore:nothing was quantized")
def test_where_nothing_can_be_trained_one_line_says_so(
    model: nn.Module, count: int, options: dict[str, Any], reason: str
) -> None:
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    gm = fxq.prepare(model.eval(), x[:8], recipe(**options))
    fxq.calibrate(gm, fxq.Data(x.split(8), held_out=0), progress=False)
    assert said(gm) == [f"not distilled: {reason}"]


def test_without_a_gain_nothing_changes() -> None:
    """Training at a rate that destroys the model ends where it began."""
    batches = images(64).split(16)
    plain = untrained(net(), batches)
    gm, report = calibrated(net(), batches, recipe(bias_rate=300.0, range_rate=5.0))
    assert said(gm) == ["not distilled: after 40 steps the error is no less"]
    assert report.steps[-1].sqnr_after_db == report.steps[-1].sqnr_before_db
    assert all(torch.equal(gm.state_dict()[name], value) for name, value in plain.state_dict().items())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch": 0}, "batch is 1 or more"),
        ({"max_steps": 2.5}, "option 'max_steps' is a int"),
        ({"bias_rate": -1e-3}, "bias_rate is 0 or more"),
        ({"budget": float("inf")}, "budget is 0 or more, and finite"),
        ({"range_rate": "fast"}, "option 'range_rate' is a float"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_are_checked(options: dict[str, Any], match: str) -> None:
    with pytest.raises(fxq.RecipeError, match=match):
        recipe(**options)
