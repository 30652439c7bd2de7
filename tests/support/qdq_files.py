"""QDQ files built by hand, node by node, for what reads files that fxq did not write."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIZE = 4, 8


@dataclass
class QdqFile:
    """A model with the input x and what is added to it; each method returns the name of the value that it makes."""

    opset: int = 18
    shape: tuple[int | str, ...] = (1, CHANNELS, SIZE, SIZE)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: dict[str, np.ndarray] = field(default_factory=dict)

    def store(self, name: str, value: np.ndarray) -> str:
        self.stored[name] = value
        return name

    def op(self, op_type: str, *inputs: str, name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def qdq(self, value: str, name: str, dtype: type = np.int8, zero: int = 0, scale: float = 0.05) -> str:
        """Quantize and dequantize: the nodes ``<name>/q`` and ``<name>/dq``."""
        ends = (
            self.store(f"{name}.scale", np.array(scale, np.float32)),
            self.store(f"{name}.zero_point", np.array(zero, dtype)),
        )
        return self.op(
            "DequantizeLinear", self.op("QuantizeLinear", value, *ends, name=f"{name}/q"), *ends, name=f"{name}/dq"
        )

    def weight(self, name: str, axis: int = 0, shape: tuple[int, ...] = (CHANNELS, CHANNELS, 3, 3)) -> str:
        """Return a dequantized weight of int8 codes, a scale for each index of ``axis``."""
        codes = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
        count = shape[axis]
        stored = (
            self.store(f"{name}.codes", codes),
            self.store(f"{name}.scale", np.full(count, 0.01, np.float32)),
            self.store(f"{name}.zero_point", np.zeros(count, np.int8)),
        )
        return self.op("DequantizeLinear", *stored, name=f"{name}/dq", axis=axis)

    def bias(self, name: str, scale: float = 0.05 * 0.01) -> str:
        """Return a dequantized bias of int32 codes."""
        stored = (
            self.store(f"{name}.codes", np.arange(CHANNELS, dtype=np.int32)),
            self.store(f"{name}.scale", np.full(CHANNELS, scale, np.float32)),
            self.store(f"{name}.zero_point", np.zeros(CHANNELS, np.int32)),
        )
        return self.op("DequantizeLinear", *stored, name=f"{name}/dq", axis=0)

    def conv(self, value: str, name: str, weight: str | None = None, bias: str | None = None) -> str:
        inputs = (value, weight or self.weight(f"{name}.weight"), *([] if bias is None else [bias]))
        return self.op("Conv", *inputs, name=name, pads=[1, 1, 1, 1])

    def save(self, path: Path, output: str) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "model",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * 4)],
            [numpy_helper.from_array(value, name) for name, value in self.stored.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)
        onnx.save(model, path)
        return path


def residual_block(path: Path, on_skip: bool = True, on_branch: bool = False) -> Path:
    """Write x -> Q -> conv1 -> relu -> Q -> conv2, + x, as TensorRT wants it, or not quite.

    Args:
        path: of the file.
        on_skip: the add reads the quantized input.
        on_branch: a quantizer stands between conv2 and the add.
    """
    file = QdqFile()
    x = file.qdq("x", "input")
    y = file.qdq(file.op("Relu", file.conv(x, "conv1"), name="relu1"), "middle")
    y = file.conv(y, "conv2")
    y = file.qdq(y, "branch") if on_branch else y
    return file.save(path, file.op("Add", y, x if on_skip else "x", name="add"))
