"""What ONNX Runtime makes of a file: the operators that are left after its fusions, and a plain way to run it."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from torch import Tensor


def open_session(path: Path, optimized_to: Path | None = None) -> onnxruntime.InferenceSession:
    """Open ``path`` with ONNX Runtime's default optimizations on the CPU; optionally save the optimized model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that an optimized model is for this machine only
    options.intra_op_num_threads = 2
    if optimized_to is not None:
        options.optimized_model_filepath = str(optimized_to)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def optimized_operators(path: Path) -> Counter[str]:
    """Return how many nodes of each operator ONNX Runtime executes."""
    optimized = path.with_suffix(".optimized.onnx")
    open_session(path, optimized)
    return Counter(node.op_type for node in onnx.load(optimized).graph.node)


def run_onnxruntime(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    """Return the outputs for ``inputs``, given in the order of the file's inputs."""
    session = open_session(path)
    names = [value.name for value in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return list(session.run(None, feeds))
