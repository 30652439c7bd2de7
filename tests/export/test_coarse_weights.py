"""Weights of few codes have large steps, and so have the int32 biases that ONNX Runtime makes of float ones."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.fx import GraphModule

import fxq
from fxq.errors import ExportError
from fxq.export.parity import Reference, check_parity
from fxq.export.written_file import WrittenFile

RECIPE = fxq.recipe("tensorrt").replace(default=fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=None)))


def coarse(seed: int, depth: int) -> tuple[GraphModule, torch.Tensor]:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, stride=2), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    x = torch.rand(16, 1, 12, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 4 bits for a whole layer: most is lost, and that is not the subject
        return fxq.quantize(model, [x], recipe=RECIPE), x[:1]


# Each is off by more than 1 LSB on average; without the biases' rounding its noise explains none of it.
@pytest.mark.parametrize(("seed", "depth"), [(3, 4), (1, 6)])
def test_what_rounded_biases_do_is_no_fault_of_the_file(seed: int, depth: int, tmp_path: Path) -> None:
    converted, x = coarse(seed, depth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = fxq.export_onnx(converted, tmp_path / "coarse.onnx", x)
    assert report.optimized_parity[0].mean_lsb > 1


@pytest.mark.parametrize("optimize", [False, True])
def test_a_wrong_bias_is_refused_all_the_same(optimize: bool, tmp_path: Path) -> None:
    converted, x = coarse(3, 4)
    path = tmp_path / "wrong.onnx"
    fxq.export_onnx(converted, path, x, check=False)
    model = onnx.load(path)
    bias = next(stored for stored in model.graph.initializer if stored.name.endswith("6.bias"))
    wrong = numpy_helper.to_array(bias) + np.float32([0.2, 0, 0, 0])
    bias.CopyFrom(numpy_helper.from_array(wrong, bias.name))
    onnx.save(model, path)
    with pytest.raises(ExportError, match="computes another 'output' than the model"):
        check_parity(WrittenFile(path), Reference.run(converted, (x,)), optimize)
