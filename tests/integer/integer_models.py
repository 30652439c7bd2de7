"""Small models for integer arithmetic, and how far three ways to run them are apart."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.runtimes import get_runtime


class Between(nn.Module):
    """What is tested, between two convolutions, so that the target quantizes what it reads and what it makes."""

    def __init__(self, inside: nn.Module, channels: int, dims: int = 2, then: nn.Module | None = None) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.first, self.inside = conv(3, 4, 1), inside
        self.last = conv(channels, 4, 1) if then is None else then

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inside(self.first(x)))


class Call(nn.Module):
    """A function as a module, with a parameter if it takes one."""

    def __init__(self, function: Callable[..., Tensor], *parameters: Tensor) -> None:
        super().__init__()
        self.function = function
        self.constants = nn.ParameterList(parameters)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.constants)


def converted(model: nn.Module, x: Tensor, recipe: str | fxq.Recipe = "onnxruntime") -> GraphModule:
    return fxq.quantize(model.eval(), [x], recipe, example_inputs=x, progress=False, min_sqnr_db=-100)


def optimized(model: GraphModule, x: Tensor, folder: Path) -> Tensor:
    """Return what ONNX Runtime's own integer kernels make of the QDQ file of a converted model."""
    report = fxq.export_onnx(model, folder / "qdq.onnx", check=False)
    return torch.from_numpy(get_runtime("onnxruntime", threads=1).run(report.path, [x.numpy()])[0])


def step_of(model: GraphModule) -> float:
    """Return the step of the codes that a converted model's output is dequantized from."""
    dequantize = model.graph.output_node().args[0]
    return float(model.get_buffer(str(dequantize.args[1].target)))
