"""A torchvision ResNet becomes an int8 ONNX file, and says what became of its layers.

Run it: uv run python examples/quickstart.py
"""

import torch
import torchvision

import fxq

torch.manual_seed(0)
model = torchvision.models.resnet18(weights=None).eval()  # yours, trained, goes here; it is never changed
images = torch.randn(8, 3, 64, 64)  # a few hundred images of the training set

prepared = fxq.prepare(model, images[:2], recipe="tensorrt")
fxq.calibrate(prepared, images.split(4))
print(fxq.explain(prepared))

converted = fxq.convert(prepared)
print(fxq.export_onnx(converted, "resnet18.onnx"))
