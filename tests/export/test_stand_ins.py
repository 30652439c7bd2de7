"""What torch traces in place of quantizers: less than the graph has, and the file is the same."""

from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from hand_built import Builder
from torch import fx

from fxq.export import export_onnx
from fxq.export.stand_ins import QUANTIZED, STORED, StandIns
from fxq.quant import DEQUANTIZE, QUANTIZE

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class _Graph(Builder):
    """Builds quantizers, each with a scale and a zero point of its own under its name."""

    def params(self, name: str) -> tuple[fx.Node, fx.Node]:
        return self.read(f"{name}.scale", torch.tensor(0.1)), self.read(f"{name}.zero_point", torch.tensor(0).char())

    def quantize(self, x: fx.Node, name: str, bits: int = 8) -> fx.Node:
        hi = 2 ** (bits - 1) - 1
        return self.call(QUANTIZE, x, *self.params(name), None, -hi - 1, hi, torch.int8)

    def dequantize(self, codes: fx.Node, name: str) -> fx.Node:
        return self.call(DEQUANTIZE, codes, *self.params(name), None, torch.float32)


def _everything() -> fx.GraphModule:
    """A pair, two readers of the same codes, 4 bits in an int8, stored codes read twice; and what torch must see:
    codes that are returned, and codes that are read by other steps."""
    build = _Graph()
    x = build.input()
    pair = build.dequantize(build.quantize(x, "pair"), "pair")
    codes = build.quantize(pair, "shared", bits=4)
    first, second = build.dequantize(codes, "shared"), build.dequantize(codes, "shared")
    weight = build.read("fc.weight", torch.randint(-9, 9, (8, 8), generator=torch.Generator().manual_seed(0)).char())
    steps = build.read("fc.weight_scale", torch.full((8,), 0.01)), build.read("fc.zeros", torch.zeros(8).char())
    bias = build.read("fc.bias", torch.linspace(-1, 1, 8))
    called = first
    for _ in range(2):
        called = build.call(F.linear, called, build.call(DEQUANTIZE, weight, *steps, 0, torch.float32), bias)
    returned = build.quantize(build.call(torch.add, called, second), "returned")
    unlike = build.dequantize(build.quantize(pair, "steps"), "other")
    return build.finish(build.dequantize(returned, "returned"), returned, unlike)


def _put_into_copy(gm: fx.GraphModule) -> fx.Graph:
    graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(gm.graph, copied))
    StandIns(gm, "").put_into(graph, copied)
    graph.lint()
    return graph


def test_a_pair_is_one_node_that_reads_no_tensors() -> None:
    graph = _put_into_copy(_everything())
    calls = [node.target for node in graph.nodes if node.op == "call_function"]
    assert calls.count(QUANTIZED) == 3
    assert calls.count(STORED) == 2
    assert calls.count(QUANTIZE) == calls.count(DEQUANTIZE) == 2  # returned, and read by other steps
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    names = ("returned", "steps", "other")
    assert read == {"fc.bias", *(f"{name}.{what}" for name in names for what in ("scale", "zero_point"))}


def test_the_file_is_what_torch_writes_of_the_quantizers_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gm = _everything()
    export_onnx(gm, tmp_path / "stand_ins.onnx", X)
    monkeypatch.setattr(StandIns, "put_into", lambda *_: None)
    export_onnx(gm, tmp_path / "themselves.onnx", X)
    found, wanted = (onnx.load(tmp_path / f"{name}.onnx").graph for name in ("stand_ins", "themselves"))
    assert list(found.node) == list(wanted.node)
    assert [node.op_type for node in found.node].count("QuantizeLinear") == 4
    assert sorted(map(str, found.initializer)) == sorted(map(str, wanted.initializer))
    stored = {tensor.name for tensor in wanted.initializer}
    found_types, wanted_types = (
        [value for value in graph.value_info if value.name not in stored] for graph in (found, wanted)
    )
    assert found_types == wanted_types


def test_a_tensor_that_other_nodes_read_too_is_stored_once(tmp_path: Path) -> None:
    build = _Graph()
    x = build.input()
    pair = build.dequantize(build.quantize(x, "pair"), "pair")
    gm = build.finish(build.call(torch.mul, pair, build.read("pair.scale", torch.tensor(0.1))))
    export_onnx(gm, tmp_path / "model.onnx", X)
    names = [tensor.name for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer]
    assert sorted(names) == ["pair.scale", "pair.zero_point"]
