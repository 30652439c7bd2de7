"""kind: what a node computes, as one word; whether it produces a tensor, and which shape."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxq.graph import kind, module_kind, produces_tensor, shape_of
from fxq.graph.kinds import produces_values
from fxq.graph.trace import trace
from fxq.nn import QuantConv2d, TensorQuantizer

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Runs(nn.Module):
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(x)


CALLS: dict[str, tuple[Any, str]] = {
    "operator": (lambda x: x * 2, "mul"),
    "function": (lambda x: torch.cat([x, x]), "cat"),
    "method": (lambda x: x.reshape(2, -1), "reshape"),
    "many names of moving": (lambda x: x.permute(0, 2, 3, 1), "transpose"),
    "unknown function": (torch.erf, "other"),
    "unknown method": (lambda x: x.cumsum(1), "other"),
    "functional attention": (lambda x: F.scaled_dot_product_attention(x, x, x), "attention"),
}


@pytest.mark.parametrize(("body", "expected"), CALLS.values(), ids=CALLS)
def test_a_call_is_of_the_kind_that_it_computes(body: Any, expected: str) -> None:
    graph = trace(Runs(body).eval(), (X,)).graph
    assert kind(graph.output_node().all_input_nodes[0]) == expected
    assert [kind(graph.output_node()), kind(next(iter(graph.nodes)))] == ["output", "placeholder"]


class OwnConv(nn.Conv2d):
    """A subclass is of its base's kind."""


MODULES: dict[str, tuple[nn.Module, str]] = {
    "subclass": (OwnConv(4, 4, 1), "conv"),
    "quantized": (QuantConv2d(4, 4, 1), "conv"),
    "quantizer": (TensorQuantizer(), "quantizer"),
    "pool to one": (nn.AdaptiveAvgPool2d((1, 1)), "global_avg_pool"),
    "pool to several": (nn.AdaptiveAvgPool2d((2, None)), "adaptive_avg_pool"),
    "unknown": (nn.Softsign(), "other"),
}


@pytest.mark.parametrize(("module", "expected"), MODULES.values(), ids=MODULES)
def test_a_module_is_of_the_kind_of_the_nearest_class_that_has_one(module: nn.Module, expected: str) -> None:
    assert module_kind(module) == expected


@pytest.mark.parametrize("inputs", [(X,), None], ids=["shapes", "no shapes"])
def test_sizes_and_tuples_are_no_tensors_and_their_items_may_be(inputs: tuple[Tensor, ...] | None) -> None:
    def body(x: Tensor) -> Tensor:
        first, _ = torch.chunk(x, 2, 1)
        return first.reshape(x.size(0) * 2, -1)

    nodes = {node.name: node for node in trace(Runs(body).eval(), inputs).graph.nodes} if inputs else {}
    if not nodes:
        graph = torch.fx.symbolic_trace(Runs(lambda x: torch.chunk(x, 2, 1)[0].reshape(x.size(0) * 2, -1))).graph
        nodes = {node.name: node for node in graph.nodes}
    tensors = {name for name, node in nodes.items() if produces_tensor(node) and node.op == "call_function"}
    assert tensors == {"getitem"}
    assert not produces_tensor(nodes["size"])
    assert not produces_tensor(nodes["mul"])
    assert not produces_tensor(nodes["chunk"])
    assert produces_values(nodes["chunk"])
    assert produces_tensor(nodes["reshape"])


def test_a_shape_is_known_where_example_inputs_were_given() -> None:
    traced = trace(Runs(lambda x: x.flatten(1)).eval(), (X,))
    node = traced.graph.output_node().all_input_nodes[0]
    assert shape_of(node) == (2, 144)
    del node.meta["val"]
    assert shape_of(node) is None
