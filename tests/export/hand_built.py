"""Lowered graphs written by hand, one operator each, and what ONNX Runtime makes of the files."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn

from fxq.runtimes import count_kinds, get_runtime


class Builder:
    """Adds calls and stored tensors, by their module paths, to a graph under construction."""

    def __init__(self) -> None:
        self.root, self.graph = nn.Module(), fx.Graph()

    def input(self, name: str = "x") -> fx.Node:
        return self.graph.placeholder(name)

    def read(self, path: str, value: Tensor) -> fx.Node:
        *parents, leaf = path.split(".")
        module = self.root
        for name in parents:
            if not hasattr(module, name):
                module.add_module(name, nn.Module())
            module = getattr(module, name)
        module.register_buffer(leaf, value)
        return self.graph.get_attr(path)

    def call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(function, args, kwargs)

    def finish(self, *outputs: fx.Node) -> fx.GraphModule:
        self.graph.output(outputs if len(outputs) > 1 else outputs[0])
        return fx.GraphModule(self.root, self.graph)


def codes_of(weight: Tensor, steps: Tensor, hi: int = 127) -> Tensor:
    """Return the int8 codes of a weight; ``steps`` broadcast against it."""
    return torch.round(weight / steps).clamp(-hi - 1, hi).to(torch.int8)


def run(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    return get_runtime("onnxruntime", threads=1).run(path, inputs)


def kernels(path: Path) -> Counter[str]:
    """Return the operators that ONNX Runtime runs after its optimizations."""
    return count_kinds(get_runtime("onnxruntime").executed_ops(path))


def stored(path: Path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
