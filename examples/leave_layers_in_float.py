"""Rules choose what is quantized and how: by module path, by type, by predicate; the last that matches wins.

Run it: uv run python examples/leave_layers_in_float.py
"""

import torch
import torchvision
from torch import nn

import fxq

torch.manual_seed(0)
model = torchvision.models.resnet18(weights=None).eval()
images = torch.randn(8, 3, 64, 64)

recipe = (
    fxq.recipe("tensorrt")
    .replace(calibrator="percentile")
    .with_rules(
        ("conv1", None),  # the stem stays in float
        (nn.Linear, fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0))),
        (lambda path, module: path.startswith("layer4") and "downsample" in path, None),
    )
)
prepared = fxq.prepare(model, images[:2], recipe)
fxq.calibrate(prepared, images.split(4))
explanation = fxq.explain(prepared)
for path in ("conv1", "layer1.0.conv1", "layer4.0.downsample.0", "fc"):
    node = explanation[path]
    how = ", ".join(f"{tensor.role}: {tensor.descriptor} {tensor.range}" for tensor in node.quantized)
    print(f"{path:22} {how or node.reason}")
