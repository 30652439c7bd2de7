"""Random networks through every stage: no error but fxq's own, and no file that computes something else."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.random_models import RandomNet
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxq
from fxq.compare.outputs import named_outputs, output_steps
from fxq.compare.parity import compare_all, is_rounding, rounding_floors
from fxq.runtimes import get_runtime

RECIPES = ("tensorrt", "onnxruntime", "dynamic")
SANE, LEAST_SQNR_DB = 1e3, 8.0


def inputs(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def floats(outputs: Any) -> list[Tensor]:
    return [value.double() for value in pytree.tree_leaves(outputs)]


def check_in_float(prepared: torch.fx.GraphModule, model: nn.Module, x: Tensor) -> None:
    """With its quantizers off, the prepared model computes what the model does, up to the rounding of folding."""
    quantizers = [module for module in prepared.modules() if isinstance(module, fxq.TensorQuantizer)]
    switched_on = [module for module in quantizers if module.is_enabled]
    for module in switched_on:
        module.disable()
    for want, have in zip(floats(model(x.clone())), floats(prepared(x.clone())), strict=True):
        assert want.shape == have.shape
        assert is_rounding(float((want - have).abs().max()), want)
    for module in switched_on:
        module.enable()


def check_file(path: Path, converted: torch.fx.GraphModule, x: Tensor) -> None:
    """ONNX Runtime, with its fusions, computes what the converted model does, for a batch that was not traced."""
    expected = named_outputs(converted, (x,))
    actual = [torch.from_numpy(array) for array in get_runtime("onnxruntime", threads=1).run(path, [x.numpy()])]
    steps = output_steps(converted, expected)
    parity = compare_all(expected, actual, steps)

    def is_enough(floors: Any) -> bool:
        return all(output.is_within(noise=floor) for output, floor in zip(parity, floors, strict=True))

    if not all(output.is_within() for output in parity):
        assert is_enough(rounding_floors(converted, (x,), expected, steps, is_enough)), parity


def sqnr_db(model: nn.Module, converted: nn.Module, x: Tensor) -> float | None:
    """Return the lowest SQNR of the outputs; None where values are so large or small that int8 need not hold them."""
    found = []
    for want, have in zip(floats(model(x.clone())), floats(converted(x.clone())), strict=True):
        signal = want - want.mean()
        if not 1 / SANE < float(signal.square().mean().sqrt()) < SANE:
            return None
        found.append(float(10 * torch.log10(want.square().sum() / (want - have).square().sum().clamp(min=1e-12))))
    return min(found)


@torch.no_grad()
def check(seed: int, recipe: str, folder: Path) -> None:
    model = RandomNet(seed)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [inputs(4, 1000 + index) for index in range(3)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nothing was quantized")  # "dynamic" leaves convolutions in float
        prepared = fxq.prepare(model, batches[0], recipe)
    check_in_float(prepared, model, inputs(3, 7))
    if recipe != "dynamic":
        fxq.calibrate(prepared, batches, progress=False)
    converted = fxq.convert(prepared)
    path = folder / f"{recipe}.onnx"
    report = fxq.export_onnx(converted, path, batches[0])
    assert report.quantize_nodes or recipe == "dynamic"  # which leaves convolutions in float
    check_file(path, converted, inputs(5, 8))
    sqnr = sqnr_db(model, converted, batches[0])
    assert sqnr is None or sqnr > LEAST_SQNR_DB
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:the calibration data is not like")  # random statistics are no training's
@pytest.mark.parametrize(("seed", "recipe"), [(0, "tensorrt"), (1, "onnxruntime"), (2, "dynamic")])
def test_a_few_random_models_come_out_right(seed: int, recipe: str, tmp_path: Path) -> None:
    check(seed, recipe, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("seed", range(100, 160))
def test_many_random_models_come_out_right(seed: int, recipe: str, tmp_path: Path) -> None:
    check(seed, recipe, tmp_path)
