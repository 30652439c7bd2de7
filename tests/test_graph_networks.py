"""Graphs as inputs: nodes and edges, of which dimension 0 counts no samples."""

from pathlib import Path

import torch
from torch import Tensor, nn

import fxq


class Attention(nn.Module):
    """A GAT layer written with index_add and scatter_add."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.score, self.head = nn.Linear(16, 16, bias=False), nn.Linear(32, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h, (source, target) = self.weight(x), edges
        a = nn.functional.leaky_relu(self.score(torch.cat([h[source], h[target]], -1)), 0.2).squeeze(-1).exp()
        a = a / torch.zeros(x.shape[0]).index_add(0, target, a)[target]
        messages = h[source] * a[:, None]
        gathered = torch.zeros_like(h).scatter_add(0, target[:, None].expand_as(messages), messages)
        return self.head(nn.functional.elu(gathered))


def test_a_graph_is_one_sample_and_nodes_and_edges_stay_open(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graphs = [(torch.randn(12, 16), torch.randint(0, 12, (2, 30))) for _ in range(2)]
    model = Attention().eval()
    prepared = fxq.prepare(model, graphs[0])
    fxq.calibrate(prepared, graphs, progress=False)
    converted = fxq.convert(prepared)
    quality = fxq.explain(converted).quality
    assert fxq.explain(converted).coverage.quantized == ("weight", "score", "head")
    assert quality is not None
    assert quality.samples == 2
    report = fxq.export_onnx(converted, tmp_path / "gat.onnx", dynamic_shapes=({0: "nodes"}, {1: "edges"}))
    assert {name for other in report.other_sizes for name in other.sizes} == {"nodes", "edges"}
