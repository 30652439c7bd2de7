"""Where in the graph a finding about a file is shown."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.explanation import QuantizedTensor
from fxq.registry import get_target
from fxq.reporting.content import GraphNode
from fxq.reporting.places import places_of
from fxq.verification.finding import Finding


def reads(quantizer: str) -> QuantizedTensor:
    return QuantizedTensor("input", 0, quantizer, "int8 per tensor", "[-1, 1]", "plan_ops", "it is one")


NODES = (
    GraphNode("x", "x", "input", None, (), ""),
    GraphNode("block_conv", "block.conv", "conv", None, (reads("block.conv_input_quantizer"),), ""),
    GraphNode("add", "block.add", "add", None, (reads("block.conv_input_quantizer"),), ""),
    GraphNode("relu", "block.relu", "relu", None, (), "fused"),
    GraphNode("head", "head", "linear", None, (reads("head_input_quantizer"),), ""),
)


@pytest.mark.parametrize(
    ("path", "node", "places"),
    [
        ("block.conv", "block.conv/Conv", [1]),
        ("", "relu", [3]),
        ("head_input_quantizer", "head_input_quantizer/QuantizeLinear", [4]),
        ("block.conv_input_quantizer", "", [1, 2]),
        ("block.conv.weight", "block.conv.weight/DequantizeLinear", [1]),
        ("block", "block/Add", [2, 3]),
        ("", "", []),
        ("no.such", "no.such/Conv", []),
    ],
    ids=["operation", "by-node", "quantizer", "shared", "stored-tensor", "module", "file", "unknown"],
)
def test_a_finding_is_shown_at_what_it_names(path: str, node: str, places: list[int]) -> None:
    finding = Finding("rule", node, path, "warning", "")
    assert places_of([finding], NODES) == [places]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + x).relu()


def test_all_that_verify_finds_in_a_file_of_fxq_has_its_place(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), Block()).eval()
    x = torch.randn(8, 3, 8, 8)
    prepared = fxq.prepare(net, x[:2], "onnxruntime")
    fxq.calibrate(prepared, [x], progress=False)
    file = fxq.export_onnx(fxq.convert(prepared), tmp_path / "model.onnx")
    target = get_target("tensorrt")
    rules_alone = dataclasses.replace(target, file=dataclasses.replace(target.file, runtime=""))
    findings = [one for one in fxq.verify(file.path, rules_alone).findings if one.node]
    nodes = fxq.report(prepared).nodes
    shown = {
        one.path: {nodes[place].path for place in places}
        for one, places in zip(findings, places_of(findings, nodes), strict=True)
    }
    assert all(shown.values()), shown
    assert shown["0_input_quantizer"] == {"0"}
