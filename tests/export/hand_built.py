"""Lowered graphs written by hand, one operator each, and what ONNX Runtime makes of the files."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, fx, nn


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


def run(path: Path, *inputs: Tensor, threads: int = 1, entries: tuple[tuple[str, str], ...] = ()) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in entries:
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True))))


def kernels(path: Path) -> Counter[str]:
    """Return the operators that ONNX Runtime runs after its optimizations."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    options.log_severity_level = 3  # onnxruntime warns that an optimized model is for this machine only
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def stored(path: Path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
