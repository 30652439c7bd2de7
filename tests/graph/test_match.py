"""Questions about nodes: edges, readers, constants, ancestors, and the paths that lead to them."""

from typing import Any

import torch
from torch import Tensor, nn

from fxq.graph import (
    ancestors,
    has_one_reader,
    input_edges,
    is_add,
    is_constant,
    is_weighted,
    module_path,
    only_reader,
    output_edges,
    owner_path,
    tensor_edges,
)
from fxq.graph.trace import trace

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x) * self.scale.reshape(1, 4)
        return torch.cat([y, y, x.reshape(x.size(0), 4)], 1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        x = x + x
        return self.inner(x) + 1


def nodes() -> dict[str, Any]:
    return {node.name: node for node in trace(Net().eval(), (X,)).graph.nodes}


def test_each_reading_of_a_tensor_is_an_edge_of_its_own() -> None:
    found = nodes()
    assert [str(edge) for edge in input_edges(found["add"])] == ["x -> add[0]", "x -> add[1]"]
    cat = found["cat"]
    assert [(edge.producer.name, edge.position) for edge in input_edges(cat)] == [
        ("mul", 0),
        ("mul", 1),
        ("reshape_1", 2),
    ]
    assert [(edge.consumer.name, edge.position) for edge in output_edges(found["mul"])] == [("cat", 0), ("cat", 1)]


def test_edges_of_sizes_are_no_tensor_edges() -> None:
    reshape = nodes()["reshape_1"]
    assert [edge.producer.name for edge in input_edges(reshape)] == ["add", "size"]
    assert [edge.producer.name for edge in tensor_edges(reshape)] == ["add"]


def test_one_reader_is_one_argument_of_one_node() -> None:
    found = nodes()
    assert has_one_reader(found["inner_fc"])
    assert not has_one_reader(found["mul"])  # one node, two arguments
    assert only_reader(found["mul"]) is found["cat"]
    assert only_reader(found["add"]) is None


def test_kinds_of_questions() -> None:
    found = nodes()
    assert is_add(found["add"])
    assert not is_add(found["add_1"])  # one operand is a number
    assert is_weighted(found["inner_fc"])
    assert not is_weighted(found["mul"])
    assert is_constant(found["reshape"])  # a parameter, reshaped
    assert not is_constant(found["reshape_1"])


def test_ancestors_come_by_distance_without_sizes_and_stored_tensors() -> None:
    layers = [[node.name for node in layer] for layer in ancestors(nodes()["cat"])]
    assert layers == [["cat"], ["mul", "reshape_1"], ["inner_fc", "add"], ["x"]]


def test_paths_lead_to_the_module_that_is_called_or_holds_the_call() -> None:
    found = nodes()
    assert (module_path(found["inner_fc"]), owner_path(found["inner_fc"])) == ("inner.fc", "inner")
    assert (module_path(found["mul"]), owner_path(found["mul"])) == ("inner", "inner")
    assert (module_path(found["add"]), owner_path(found["add"])) == ("", "")
