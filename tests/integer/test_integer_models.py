"""Whole networks on integers against ONNX Runtime's optimized execution of their QDQ files, which is the judge."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from integer_models import codes_apart, converted, optimized
from support.models import Digits, random_images, torchvision_model, with_batch_statistics
from torch import Tensor, nn

import fxq


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    def __init__(self, up: str) -> None:
        super().__init__()
        self.down, self.bottom, self.top = block(3, 8), block(8, 16), block(16, 8)
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(8, 2, 1)
        resized = (
            nn.Sequential(nn.Upsample(scale_factor=2, mode=up), nn.Conv2d(16, 8, 1)) if up != "transposed" else None
        )
        self.up = resized or nn.ConvTranspose2d(16, 8, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.head(self.top(torch.cat([self.up(self.bottom(self.pool(x))), x], 1)))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "unet, transposed": (lambda: UNet("transposed"), 16),
    "unet, nearest": (lambda: UNet("nearest"), 16),
    "unet, bilinear": (lambda: UNet("bilinear"), 16),
    "mobilenet_v2": (lambda: torchvision_model("mobilenet_v2", size=64, width_mult=0.5), 64),
    "mobilenet_v3_small": (lambda: torchvision_model("mobilenet_v3_small", size=64, width_mult=0.5), 64),
}


# With random weights; the integers are compared with the same codes in float.
@pytest.mark.filterwarnings("ignore:the converted model is far from the original")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name == "mobilenet_v3_small" else ()) for name in MODELS],
)
def test_each_operation_of_a_network_is_within_one_code_of_onnx_runtime(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, size = MODELS[name]
    x = random_images(4, size)
    model = with_batch_statistics(build(), x)
    qdq = converted(model, x)
    integer = fxq.to_integer(qdq)
    apart = codes_apart(qdq, integer, x, tmp_path)
    assert len(apart) >= 10
    assert {name: far for name, far in apart.items() if far > 1} == {}


@pytest.mark.parametrize("recipe", ["onnxruntime", "tensorrt"])
def test_the_digits_resnet_keeps_its_accuracy(digits: Digits, recipe: str, tmp_path: Path) -> None:
    qdq = fxq.quantize(digits.model, [digits.training_images[:128]], recipe, progress=False)
    integer = fxq.to_integer(qdq)
    with torch.no_grad():
        result, float_result = integer(digits.test_images), digits.model(digits.test_images)
    assert digits.accuracy(result) >= digits.accuracy(float_result) - 0.01
    expected = optimized(qdq, digits.test_images, tmp_path)
    # One LSB of an output that no quantizer makes is 1 / 127 of its largest magnitude. Float biases are rounded to
    # steps of input x weight here.
    lsb = 1 if recipe == "onnxruntime" else 4
    assert float((result - expected).abs().max()) <= lsb * float(expected.abs().max()) / 127
