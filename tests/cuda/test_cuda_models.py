"""Calibration, training and conversion of a model on a GPU agree with those on a CPU.

Convolutions add in another order there: outputs differ in the last bits, ranges with them, and now and then a value
falls to the next code. Hence ranges to 1e-4 of their size, and outputs to 35 dB: a few flipped codes of 255 levels.
"""

import copy

import pytest
import torch
from cuda_models import images, residual, sqnr_db
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq

pytestmark = pytest.mark.cuda
RECIPES = ("tensorrt", "onnxruntime", "openvino")
CPU = torch.device("cpu")


def calibrated(recipe: str, device: torch.device, qat: bool = False) -> GraphModule:
    """Return the small model, prepared and calibrated on ``device``."""
    model, x = residual().to(device), images(2, seed=1).to(device)
    prepared = fxq.prepare(model, x, recipe, qat=qat)
    fxq.calibrate(prepared, [images(8, seed=seed).to(device) for seed in (2, 3)], progress=False)
    return prepared


def ranges(prepared: nn.Module) -> dict[str, Tensor]:
    """Return the largest magnitude of each quantizer's range, by path."""
    found = {path: module for path, module in prepared.named_modules() if isinstance(module, fxq.TensorQuantizer)}
    return {path: module.amax.detach().cpu() for path, module in found.items() if module.is_enabled}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_model_calibrates_and_computes_the_same(gpu: torch.device, recipe: str) -> None:
    mine, theirs = calibrated(recipe, CPU), calibrated(recipe, gpu)
    wanted, found = ranges(mine), ranges(theirs)
    assert wanted.keys() == found.keys()
    for path, amax in wanted.items():
        torch.testing.assert_close(found[path], amax, rtol=1e-4, atol=1e-6, msg=path)
    x = images(4, seed=4)
    with torch.no_grad():
        assert sqnr_db(mine(x), theirs(x.to(gpu))) > 35
        assert sqnr_db(fxq.convert(mine)(x), fxq.convert(theirs)(x.to(gpu))) > 35


def test_what_was_made_on_a_gpu_stays_there(gpu: torch.device) -> None:
    prepared = calibrated("tensorrt", gpu)
    converted = fxq.convert(prepared)
    for model in (prepared, converted):
        assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {gpu}
    assert converted(images(1, seed=5).to(gpu)).device == gpu


def test_a_model_calibrated_on_the_cpu_moves_to_the_gpu(gpu: torch.device) -> None:
    prepared = calibrated("tensorrt", CPU)
    x = images(4, seed=4)
    with torch.no_grad():
        assert sqnr_db(prepared(x), copy.deepcopy(prepared).to(gpu)(x.to(gpu))) > 35


@pytest.mark.parametrize("recipe", ["dynamic", "weight_only", "weight_only_int4"])
def test_recipes_without_data_compute_the_same(gpu: torch.device, recipe: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    mine = fxq.quantize(model, recipe=recipe, example_inputs=x, progress=False)
    theirs = fxq.quantize(copy.deepcopy(model).to(gpu), recipe=recipe, example_inputs=x.to(gpu), progress=False)
    with torch.no_grad():
        assert sqnr_db(mine(x), theirs(x.to(gpu))) > 35


def test_a_training_step_moves_weights_and_ranges_the_same_way(gpu: torch.device) -> None:
    models = [calibrated("tensorrt", device, qat=True).train() for device in (CPU, gpu)]
    gradients = []
    for model, device in zip(models, (CPU, gpu), strict=True):
        loss = nn.functional.cross_entropy(model(images(8, seed=6).to(device)), torch.arange(8, device=device) % 5)
        loss.backward()
        gradients.append(
            {name: weight.grad.cpu() for name, weight in model.named_parameters() if weight.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    assert gradients[0]
    for name, gradient in gradients[0].items():
        assert sqnr_db(gradient, gradients[1][name]) > 20, name  # a flipped code moves a gradient by its whole step
    for model, device in zip(models, (CPU, gpu), strict=True):
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        model.eval()(images(8, seed=6).to(device))  # ranges of weights follow them
    mine, theirs = ({name: weight.detach().cpu() for name, weight in model.named_parameters()} for model in models)
    for name, weight in mine.items():
        assert sqnr_db(weight, theirs[name]) > 30, name  # what moved is a tenth of a gradient
    wanted, found = map(ranges, models)
    for path, amax in wanted.items():
        assert sqnr_db(amax, found[path]) > 30, path


def test_calibrating_again_takes_no_more_memory(gpu: torch.device) -> None:
    prepared = calibrated("tensorrt", gpu)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        fxq.calibrate(prepared, [images(8, seed=2).to(gpu)], progress=False)
    assert torch.cuda.memory_allocated() <= before + 2**20  # state is constant in the number of batches
