"""The plans of a set of models as text: a line for each operation that reads quantized tensors, with all of them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import timm
import torch
import torchvision
from support.sequences import tagger, tokens
from torch import Tensor, nn

import fxq

TARGETS = ("tensorrt", "onnxruntime", "openvino", "dynamic", "weight_only")


class UNet(nn.Module):
    """Two scales, joined by a concatenation on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = _block(3, 8), _block(8, 16)
        self.pool, self.up = nn.MaxPool2d(2), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge, self.head = _block(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        deep = self.down2(self.pool(skip))
        return self.head(self.merge(torch.cat((skip, self.up(deep)), 1)))


def _block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None)


MODELS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "resnet18": _torchvision("resnet18"),
        "mobilenet_v3_small": _torchvision("mobilenet_v3_small"),
        "efficientnet_b0": _torchvision("efficientnet_b0"),
        "shufflenet_v2_x0_5": _torchvision("shufflenet_v2_x0_5"),
        "squeezenet1_1": _torchvision("squeezenet1_1"),
        "vit": lambda: timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64),
        "unet": UNet,
        "tagger": tagger,
    }
)


def plans_text(name: str, target: str) -> str:
    """Return the plans of the model ``name`` for ``target``."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    inputs = tokens() if name == "tagger" else torch.zeros(2, 3, 64, 64)
    explanation = fxq.explain(fxq.prepare(model, inputs, target))
    return "\n".join([f"[{target}]", *(_line(node) for node in explanation.nodes if node.quantized)])


def _line(node: Any) -> str:
    return f"{node.path or node.node} ({node.kind}): {'; '.join(map(_tensor, node.quantized))}"


def _tensor(tensor: Any) -> str:
    position = "" if tensor.position is None else f" {tensor.position}"
    return f"{tensor.role}{position} {tensor.descriptor} by {tensor.quantizer}"
