"""One look at a graph says of each node what is asked for it alone."""

import torch
from torch import Tensor, nn

from fxq.graph.match import output_edges
from fxq.graph.memory import Memory, aliases, overwriting, writes_in_place
from fxq.graph.trace import trace


class Overwriting(nn.Module):
    """Writes into views, into an input, through a module, and into a tensor that was read before."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        before = y.flatten(1)
        early = before + 1
        y += early.view(y.shape)
        y[:, 0] = 0.0
        z = self.relu(self.conv(y))
        x.mul_(2)
        return torch.cat([z.clone().add_(1), y, before.view(y.shape), x], 1)


def test_memory_says_what_each_node_says() -> None:
    graph = trace(Overwriting().eval(), (torch.randn(1, 2, 3, 3),)).graph
    memory = Memory(graph)
    firsts = {node: memory.overwriting(node) for node in graph.nodes}
    assert {node.name for node, writer in firsts.items() if writer is not None}
    for node, writer in firsts.items():
        assert (writer is None) == (overwriting(node) is None)
        assert writer is None or (writer > node and writer.all_input_nodes[0] in aliases(node))
    for sharing, writers in memory.written():
        assert sorted(aliases(writers[0])) == sharing
        assert writers == [node for node in sharing if writes_in_place(node)]


def test_an_edge_is_found_from_both_its_ends() -> None:
    graph = torch.fx.symbolic_trace(lambda x, y: torch.cat([x, y, x], dim=1) + x).graph
    x = next(iter(graph.nodes))
    assert [str(edge) for edge in output_edges(x)] == ["x -> cat[0]", "x -> cat[2]", "x -> add[1]"]
