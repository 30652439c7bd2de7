"""The flow of pytorch-quantization's ResNet-50 tutorial on a small ResNet: its functions verbatim, through the alias.

Source: docs/source/tutorials/quant_resnet50.rst of pytorch-quantization 2.2 (Apache-2.0).
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

pytestmark = pytest.mark.usefixtures("alias", "no_gpu")

IMPORTS = """
import torch
import torch.utils.data
from torch import nn

from pytorch_quantization import nn as quant_nn
from pytorch_quantization import calib
from pytorch_quantization.tensor_quant import QuantDescriptor

from torchvision import models
"""
MODEL = """
from pytorch_quantization import quant_modules
quant_modules.initialize()

quant_desc_input = QuantDescriptor(calib_method='histogram')
quant_nn.QuantConv2d.set_default_quant_desc_input(quant_desc_input)
quant_nn.QuantLinear.set_default_quant_desc_input(quant_desc_input)

model = models.resnet50(pretrained=True)
model.cuda()
"""
CALIBRATE = '''
def collect_stats(model, data_loader, num_batches):
    """Feed data to the network and collect statistic"""

    # Enable calibrators
    for name, module in model.named_modules():
        if isinstance(module, quant_nn.TensorQuantizer):
            if module._calibrator is not None:
                module.disable_quant()
                module.enable_calib()
            else:
                module.disable()

    for i, (image, _) in tqdm(enumerate(data_loader), total=num_batches):
        model(image.cuda())
        if i >= num_batches:
            break

    # Disable calibrators
    for name, module in model.named_modules():
        if isinstance(module, quant_nn.TensorQuantizer):
            if module._calibrator is not None:
                module.enable_quant()
                module.disable_calib()
            else:
                module.enable()

def compute_amax(model, **kwargs):
    # Load calib result
    for name, module in model.named_modules():
        if isinstance(module, quant_nn.TensorQuantizer):
            if module._calibrator is not None:
                if isinstance(module._calibrator, calib.MaxCalibrator):
                    module.load_calib_amax()
                else:
                    module.load_calib_amax(**kwargs)
            print(F"{name:40}: {module}")
    model.cuda()

# It is a bit slow since we collect histograms on CPU
with torch.no_grad():
    collect_stats(model, data_loader, num_batches=2)
    compute_amax(model, method="percentile", percentile=99.99)
'''
OTHER_METHODS = """
with torch.no_grad():
    compute_amax(model, method="percentile", percentile=99.9)
    evaluate(model, criterion, data_loader_test, device="cuda", print_freq=20)

with torch.no_grad():
    for method in ["mse", "entropy"]:
        print(F"{method} calibration")
        compute_amax(model, method=method)
        evaluate(model, criterion, data_loader_test, device="cuda", print_freq=20)
"""
TRAINING = """
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.0001)
lr_scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)

# Training takes about one and half hour per epoch on a single V100
train_one_epoch(model, criterion, optimizer, data_loader, "cuda", 0, 100)
"""


class TinyResNet(nn.Module):
    """One residual block; built of whatever torch.nn holds now."""

    def __init__(self, pretrained: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.avgpool((self.conv2(x) + x).relu()).flatten(1))


@pytest.fixture
def tutorial(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the tutorial after its model is calibrated by percentile."""
    monkeypatch.setattr(models, "resnet50", TinyResNet)
    torch.manual_seed(0)
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4)) for _ in range(2)]
    scope: dict[str, Any] = {"data_loader": batches, "tqdm": lambda items, total: items}
    for block in (IMPORTS, MODEL):
        exec(block, scope)
    scope["model"].eval()
    exec(CALIBRATE, scope)
    return scope


def ranges(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name.endswith("_amax")}


def test_every_quantizer_is_calibrated_and_printed(
    tutorial: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = ranges(tutorial["model"])

    tutorial["compute_amax"](tutorial["model"], method="percentile")

    assert len(found) == 2 * 3 + 1  # two convolutions and a linear layer, and the input of the pooling
    assert found["conv1._input_quantizer._amax"].shape == ()
    assert found["conv1._weight_quantizer._amax"].shape == (8, 1, 1, 1)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("conv1._input_quantizer                  : TensorQuantizer(8bit fake per-tensor amax=")
    assert "TensorQuantizer(8bit fake axis=0 amax=[" in printed[1]
    assert printed[1].endswith("](8) calibrator=MaxCalibrator(track_amax=False) quant)")


def test_ranges_are_those_of_the_data(tutorial: dict[str, Any]) -> None:
    images = torch.cat([image for image, _ in tutorial["data_loader"]])
    found = ranges(tutorial["model"])

    # 2048 bins over the first batch; the percentile is the left edge of the bin that holds its value.
    width = float(tutorial["data_loader"][0][0].abs().max()) / 2048
    values = images.abs().flatten().sort().values
    exact = float(values[math.ceil(0.9999 * len(values)) - 1])
    assert exact - width <= float(found["conv1._input_quantizer._amax"]) <= exact
    weight = tutorial["model"].conv1.weight
    torch.testing.assert_close(found["conv1._weight_quantizer._amax"], weight.abs().amax((1, 2, 3), keepdim=True))


def test_other_methods_need_no_further_data(tutorial: dict[str, Any]) -> None:
    seen: list[dict[str, Tensor]] = []

    def evaluate(model: nn.Module, criterion: Any, data: Any, device: str, print_freq: int) -> None:
        seen.append(ranges(model))
        assert torch.isfinite(model(data[0][0])).all()

    exec(
        OTHER_METHODS, tutorial | {"evaluate": evaluate, "criterion": None, "data_loader_test": tutorial["data_loader"]}
    )

    inputs = "conv2._input_quantizer._amax"
    assert len({float(found[inputs]) for found in seen}) == 3
    assert all(
        torch.equal(found["conv1._weight_quantizer._amax"], seen[0]["conv1._weight_quantizer._amax"]) for found in seen
    )


def test_calibrated_model_trains(tutorial: dict[str, Any]) -> None:
    model = tutorial["model"]
    before, found = model.conv1.weight.detach().clone(), ranges(model)

    def train_one_epoch(model: nn.Module, criterion: Any, optimizer: Any, data: Any, *_: Any) -> None:
        for image, target in data:
            optimizer.zero_grad()
            criterion(model(image), target).backward()
            optimizer.step()

    exec(TRAINING, tutorial | {"train_one_epoch": train_one_epoch})

    assert not torch.equal(model.conv1.weight, before)
    assert all(torch.equal(tensor, found[name]) for name, tensor in ranges(model).items())
