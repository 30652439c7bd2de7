"""shift_activations: a rectified tensor in a symmetric format is shifted, and uses all codes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.net import Net
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.graph.float_model import in_float
from fxq.state import find_state

PLAIN = fxq.recipe("tensorrt").replace(calibrator="max")
RECIPE = PLAIN.with_pass("shift_activations")


def mlp(rectifier: Callable[[], nn.Module] = nn.ReLU, depth: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [module for _ in range(depth - 1) for module in (rectifier(), nn.Linear(16, 16, bias=False))]
    return nn.Sequential(nn.Linear(8, 16), *hidden, rectifier(), nn.Linear(16, 4)).eval()


def rows(count: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def images(count: int = 12) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def calibrated(model: nn.Module, x: Tensor, recipe: fxq.Recipe = RECIPE) -> GraphModule:
    gm = fxq.prepare(model, x[:2], recipe)
    fxq.calibrate(gm, fxq.Data([x], held_out=0))
    return gm


def float_outputs(gm: GraphModule, x: Tensor) -> Tensor:
    """Return what the graph computes with its quantizers off, and all biases as they are."""
    with torch.no_grad(), in_float(gm):
        return gm(x)


def reasons(gm: GraphModule) -> list[str]:
    return [entry.text for entry in find_state(gm).record.of("shift_activations", "skip")]  # type: ignore[union-attr]


def noise(model: nn.Module, gm: GraphModule, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - gm(x)).square().mean())


@pytest.mark.parametrize("rectifier", [nn.ReLU, nn.ReLU6, lambda: nn.Hardtanh(0, 0.5)], ids=["relu", "relu6", "clip"])
def test_the_codes_are_twice_as_fine_and_the_function_is_the_same(rectifier: Callable[[], nn.Module]) -> None:
    model, x = mlp(rectifier), rows()
    plain, gm = calibrated(model, x, PLAIN), calibrated(model, x)
    for path in ("2_input_quantizer", "4_input_quantizer"):
        before, now = plain.get_submodule(path), gm.get_submodule(path)
        assert float(now.amax) == pytest.approx(float(before.amax) / 2, rel=1e-6)
    # The input, and all weights, are as coarse as before.
    assert noise(model, gm, x) < 0.95 * noise(model, plain, x)
    assert reasons(gm) == []


def test_a_reader_that_makes_the_next_shifted_tensor_takes_both() -> None:
    """Each linear layer takes back one shift, whose share of rounding is no part of the float model, and adds one."""
    model, x = mlp(depth=4), rows()
    gm = calibrated(model, x)
    edits = [entry.text for entry in find_state(gm).record.of("shift_activations", "edit")]  # type: ignore[union-attr]
    assert sum("what rounding adds" in text for text in edits) == 4
    # The rounding of the weights is the only thing that the biases make up for and the float model does not have.
    with torch.no_grad():
        for path in ("2", "4", "6", "8"):
            layer = gm.get_submodule(path)
            shift = float(gm.get_submodule(f"{path}_input_quantizer").amax)
            layer.bias -= shift * (layer.quantized_weight() - layer.weight).sum(1)
    torch.testing.assert_close(float_outputs(gm, x), model(x).detach(), rtol=1e-5, atol=1e-5)


def test_what_samples_held_out_reach_is_not_cut_off_by_the_rectifier() -> None:
    model, x = mlp(), rows(128)
    x[-16:] *= 3  # those are held out
    plain, gm = (fxq.prepare(model, x[:2], recipe) for recipe in (PLAIN, RECIPE))
    fxq.calibrate(plain, [x])
    assert fxq.calibrate(gm, [x]).steps[-1].kept
    shift = float(plain.get_submodule("2_input_quantizer").amax) / 2  # type: ignore[arg-type]
    assert gm.get_submodule("1").max_val == pytest.approx(shift, rel=1e-6)


def pooled(pool: nn.Module, rectifier: nn.Module, padding: int = 0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), rectifier, pool, nn.Conv2d(6, 4, 3, padding=padding), nn.Flatten()
    ).eval()


POOLS = {
    "max": (nn.MaxPool2d(2), nn.ReLU(), "range"),
    "average": (nn.AvgPool2d(2), nn.ReLU(), "unbounded"),
    "average of relu6": (nn.AvgPool2d(2), nn.ReLU6(), "six"),
    "adaptive": (nn.AdaptiveAvgPool2d(3), nn.ReLU6(), "six"),
}


@pytest.mark.parametrize(("pool", "rectifier", "bound"), POOLS.values(), ids=POOLS.keys())
def test_pooling_before_the_quantizer_keeps_what_lies_beyond_its_range(
    pool: nn.Module, rectifier: nn.Module, bound: str
) -> None:
    model, x = pooled(pool, rectifier), images() * 3
    plain, gm = calibrated(model, x, PLAIN), calibrated(model, x)
    shift = float(plain.get_submodule("3_input_quantizer").amax) / 2
    expected = {"range": shift, "unbounded": math.inf, "six": 6 - shift}[bound]
    clip = gm.get_submodule("1")
    assert (clip.min_val, clip.max_val) == pytest.approx((-shift, expected))
    assert noise(model, gm, x) < 0.9 * noise(model, plain, x)


def test_the_unbounded_clip_is_exported(tmp_path: Path) -> None:
    model, x = pooled(nn.AvgPool2d(2), nn.ReLU()), images()
    gm = fxq.convert(calibrated(model, x))
    fxq.export_onnx(gm, tmp_path / "model.onnx", x[:2], check=True)


def conv(channels: int = 4, inputs: int = 4, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, channels, kernel, **options)


CHOICES = {
    "padded reader": (
        Net(
            lambda m, x: m.last(m.relu(m.first(x))),
            first=conv(4, 3, 3), relu=nn.ReLU(), last=conv(kernel=3, padding=1),
        ),
        RECIPE, "'last' pads it with zeros",
    ),
    "same padding": (
        Net(
            lambda m, x: m.last(m.relu(m.first(x))),
            first=conv(4, 3, 3), relu=nn.ReLU(), last=conv(kernel=3, padding="same"),
        ),
        RECIPE, "'last' pads it with zeros",
    ),
    "another reader": (
        Net(
            lambda m, x: (m.last(y := m.relu(m.first(x))), y.sigmoid()),
            first=conv(4, 3, 3), relu=nn.ReLU(), last=conv(),
        ),
        RECIPE, "more than one operation reads 'relu'",
    ),
    "padded average": (
        Net(
            lambda m, x: m.last(m.pool(m.relu(m.first(x)))),
            first=conv(4, 3, 3), relu=nn.ReLU(), pool=nn.AvgPool2d(3, 1, 1), last=conv(),
        ),
        RECIPE, "'pool' pads with zeros",
    ),
    "an add before": (
        Net(
            lambda m, x: m.last(m.relu(m.first(x) + m.other(x))),
            first=conv(4, 3), other=conv(4, 3), relu=nn.ReLU(), last=conv(),
        ),
        RECIPE, "no layer of its own computes it, but 'add'",
    ),
    "a rectifier called twice": (
        Net(
            lambda m, x: m.last(m.relu(m.mid(m.relu(m.first(x))))),
            first=conv(4, 3), mid=conv(), relu=nn.ReLU(), last=conv(),
        ),
        RECIPE, "its rectifier or quantizer is called more than once",
    ),
    "a range with zero point": (
        Net(lambda m, x: m.last(m.relu(m.first(x))), first=conv(4, 3, 3), relu=nn.ReLU(), last=conv()),
        fxq.recipe("onnxruntime").replace(calibrator="max").with_pass("shift_activations"), None,
    ),
    "no rectifier": (
        Net(lambda m, x: m.last(m.first(x)), first=conv(4, 3, 3), last=conv()), RECIPE, None
    ),
    "a clip below 0": (
        Net(
            lambda m, x: m.last(m.clip(m.first(x))),
            first=conv(4, 3, 3), clip=nn.Hardtanh(), last=conv(),
        ),
        RECIPE, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "recipe", "reason"), CHOICES.values(), ids=CHOICES.keys())
def test_what_cannot_be_shifted_is_left_alone(model: nn.Module, recipe: fxq.Recipe, reason: str | None) -> None:
    gm = fxq.prepare(model.eval(), images(2), recipe)
    before = {path: value.clone() for path, value in gm.named_parameters()}
    modules = {path: id(module) for path, module in gm.named_modules()}
    fxq.calibrate(gm, fxq.Data([images()], held_out=0))
    assert all(torch.equal(before[path], value) for path, value in gm.named_parameters())
    assert modules == {path: id(module) for path, module in gm.named_modules()}
    assert set(reasons(gm)) == ({f"not shifted: {reason}"} if reason else set())
