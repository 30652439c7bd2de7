"""Channels of no weight, and inputs of zeros, keep their bias in ONNX Runtime as it is used."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fxq
from fxq.runtimes import get_runtime

BIAS = torch.tensor([0.1, 0.4, -0.3, 0.2])
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 4),
    "conv": lambda: nn.Conv2d(4, 4, 3),
    "grouped": lambda: nn.Conv2d(4, 4, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3),
    "grouped_transposed": lambda: nn.ConvTranspose2d(4, 4, 3, groups=2),
}


def outputs(layer: nn.Module, x: torch.Tensor, recipe: fxq.Recipe, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the float layer computes, and ONNX Runtime with its default optimizations."""
    model = nn.Sequential(layer).eval()
    converted = fxq.quantize(model, [x], recipe, (x,), progress=False)
    fxq.export_onnx(converted, path, dynamic_batch=False)
    (found,) = get_runtime("onnxruntime", threads=1).run(path, [x.numpy()])
    with torch.no_grad():
        return model(x), torch.from_numpy(np.asarray(found))


@pytest.mark.parametrize("weight", [0.0, 1e-30, 1e-6])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_channel_of_no_weight_keeps_its_bias(tmp_path: Path, kind: str, weight: float) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[kind](), 300 * torch.randn(2, 4, *(() if kind == "linear" else (6, 6)))
    with torch.no_grad():
        layer.weight.div_(300)  # what is small beside the step of the input is not small in the output
        channels = layer.weight.transpose(0, 1) if "transposed" in kind else layer.weight
        channels[1] = weight
        layer.bias.copy_(BIAS)
    want, found = outputs(layer, x, fxq.recipe("onnxruntime"), tmp_path / "model.onnx")
    step = float(want.max() - want.min()) / 255
    assert (found - want)[:, 1].abs().max() <= 1.01 * step


@pytest.mark.parametrize("weight", [0.0, 1e-6], ids=["zeros", "tiny"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("axis", [0, None], ids=["per_channel", "per_tensor"])
def test_a_layer_of_no_weight_is_its_bias(tmp_path: Path, kind: str, weight: float, axis: int | None) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[kind](), 300 * torch.randn(2, 4, *(() if kind == "linear" else (6, 6)))
    with torch.no_grad():
        layer.weight.fill_(weight)
        layer.bias.copy_(BIAS)
    recipe = fxq.recipe("onnxruntime").with_rules(("0", fxq.QConfig(weight=fxq.QuantDescriptor(axis=axis))))
    want, found = outputs(layer, x, recipe, tmp_path / "model.onnx")
    torch.testing.assert_close(found, want, rtol=0, atol=float(want.max() - want.min()) / 255)


@pytest.mark.filterwarnings("ignore:.*single value:UserWarning")
@pytest.mark.parametrize("recipe", ["onnxruntime", "tensorrt"])
def test_an_input_of_zeros_leaves_the_bias(tmp_path: Path, recipe: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3)
    with torch.no_grad():
        layer.weight.mul_(1000)  # with step 1 for the input, a bias would count in steps of these
        layer.bias.copy_(BIAS)
    want, found = outputs(layer, torch.zeros(2, 4, 6, 6), fxq.recipe(recipe), tmp_path / "model.onnx")
    torch.testing.assert_close(found, want, rtol=0, atol=0.7 / 255)
