"""A small network, quantized for each runtime, as files."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from support.small import images, residual
from torch.fx import GraphModule

import fxq

RECIPES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt_rtx": "tensorrt"}


@dataclass(frozen=True)
class Files:
    """Files of ``support.small.Residual``, by the runtime they are for."""

    converted: dict[str, GraphModule]
    static: dict[str, Path]
    dynamic: dict[str, Path]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder, x = tmp_path_factory.mktemp("runtimes"), images(4)
    made = Files({}, {}, {})
    for runtime, recipe in RECIPES.items():
        converted = made.converted[runtime] = fxq.quantize(residual(), [x], recipe, x, progress=False)
        for kind, dynamic in ((made.static, False), (made.dynamic, True)):
            path = folder / f"{runtime}-{dynamic}.onnx"
            kind[runtime] = fxq.export_onnx(converted, path, dynamic_batch=dynamic).path
    return made
