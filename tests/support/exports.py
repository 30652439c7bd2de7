"""ONNX files of torchvision models, made once per session for all tests that look at them."""

from dataclasses import dataclass, field
from pathlib import Path

from support.models import random_images, torchvision_model
from torch import nn

import fxq


@dataclass
class Exports:
    """Quantizes, exports and keeps the files in ``folder``."""

    folder: Path
    models: dict[tuple[str, int], nn.Module] = field(default_factory=dict)

    def path(self, name: str, recipe: str, size: int = 224, dynamic_batch: bool | None = None) -> Path:
        """Return the file of a torchvision model, quantized by a recipe for images of ``size`` pixels."""
        path = self.folder / f"{name}-{recipe}-{size}-{dynamic_batch}.onnx"
        if not path.exists():
            images = random_images(2, size, seed=1)
            converted = fxq.quantize(self.model(name, size), [images], recipe, images[:1], progress=False)
            fxq.export_onnx(converted, path, dynamic_batch=dynamic_batch)
        return path

    def model(self, name: str, size: int = 224) -> nn.Module:
        """Return the float model; do not modify it."""
        if (name, size) not in self.models:
            self.models[name, size] = torchvision_model(name, size)
        return self.models[name, size]
