"""A small network, quantized for each runtime, as files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from support.small import images, residual
from torch.fx import GraphModule

import fxq

RECIPES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt_rtx": "tensorrt"}


@dataclass(frozen=True)
class RuntimeFiles:
    """Files of ``small.Residual`` with a static and a dynamic batch, by the runtime that they are for."""

    converted: dict[str, GraphModule] = field(default_factory=dict)
    static: dict[str, Path] = field(default_factory=dict)
    dynamic: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def write(cls, folder: Path) -> Self:
        files, x = cls(), images(4)
        for runtime, recipe in RECIPES.items():
            converted = files.converted[runtime] = fxq.quantize(residual(), [x], recipe, x, progress=False)
            for kind, paths in (("static", files.static), ("dynamic", files.dynamic)):
                path = folder / f"{runtime}-{kind}.onnx"
                paths[runtime] = fxq.export_onnx(converted, path, dynamic_batch=kind == "dynamic").path
        return files
