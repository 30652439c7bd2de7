"""Small models for integer arithmetic, and how far three ways to run them are apart."""

from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.quant import QUANTIZE
from fxq.runtimes import get_runtime
from fxq.state import find_state


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


def codes_apart(qdq: GraphModule, integer: GraphModule, x: Tensor, folder: Path) -> dict[str, int]:
    """Return how far each operation's codes are from ONNX Runtime's, at most, if it reads the codes of ONNX Runtime.

    ONNX Runtime runs the QDQ file optimized, and gives what each QuantizeLinear makes, fused or not.
    """
    model = onnx.load(fxq.export_onnx(qdq, folder / "qdq.onnx", check=False).path)
    written = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in written)
    onnx.save(model, folder / "watched.onnx")
    results = get_runtime("onnxruntime", threads=1).run(folder / "watched.onnx", [x.numpy()])[-len(written) :]
    names = [node.name for node in qdq.graph.nodes if node.target is QUANTIZE]
    codes = dict(zip(names, map(torch.from_numpy, results), strict=True))
    state = find_state(integer)
    assert state is not None
    stand_ins = {
        entry.text.partition(" ")[0]: codes[entry.node]
        for entry in state.record.of("to_integer")
        if entry.node in codes
    }
    apart = {}

    class Forced(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            own = super().run_node(n)
            if n.name not in stand_ins:
                return own
            theirs = stand_ins[n.name]
            assert own.dtype is theirs.dtype
            apart[n.name] = int((own.int() - theirs.int()).abs().max())
            return theirs

    with torch.no_grad():
        Forced(integer).run(x)
    return apart


def step_of(model: GraphModule) -> float:
    """Return the step of the codes that a converted model's output is dequantized from."""
    dequantize = model.graph.output_node().args[0]
    return float(model.get_buffer(str(dequantize.args[1].target)))
