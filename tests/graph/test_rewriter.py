"""The rewriter: each edit does what it says, writes it down, and refuses what would break the graph."""

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.graph import Rewriter, Settings, graph_text, input_edges, output_edges
from fxq.graph.trace import trace
from fxq.nn import TensorQuantizer
from fxq.record import Record

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.gain = nn.Linear(4, 4), nn.ReLU(), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.fc(x))
        return y * self.gain + y


def rewriter() -> tuple[Rewriter, dict[str, Any]]:
    gm = trace(Net().eval(), (X,))
    rw = Rewriter(gm, Settings(fxq.get_target("tensorrt"), example_inputs=(X,)), Record(), "test")
    return rw, {node.name: node for node in gm.graph.nodes}


def written(rw: Rewriter) -> list[tuple[str, str, str]]:
    return [(entry.action, entry.node, entry.text) for entry in rw.record.entries]


def test_a_bypassed_node_is_gone_and_its_readers_read_its_input() -> None:
    rw, nodes = rewriter()
    rw.bypass(nodes["act"], "a test")
    assert "mul = mul(fc, gain)" in graph_text(rw.gm)
    assert written(rw) == [("edit", "act", "a test")]


def test_what_only_a_replaced_node_read_goes_with_it() -> None:
    rw, nodes = rewriter()
    rw.call_instead(nodes["mul"], operator.neg, (nodes["act"],), {}, "a test")
    text = graph_text(rw.gm)
    assert "mul = neg(act)" in text  # the name stays: rules and reports know it
    assert "gain" not in text


def test_a_module_in_place_of_a_function_keeps_its_name_and_place() -> None:
    rw, nodes = rewriter()
    new = rw.call_module_instead(nodes["mul"], "fc", nn.Sigmoid(), (nodes["act"],), "a test")
    assert (new.name, new.target) == ("mul", "fc_1")  # another module is at fc
    assert isinstance(rw.module(new), nn.Sigmoid)


def test_a_quantizer_is_inserted_on_some_readings_and_not_on_others() -> None:
    rw, nodes = rewriter()
    edges = [edge for edge in output_edges(nodes["act"]) if edge.consumer is nodes["add"]]
    rw.insert_module_on(edges, "quantizer", TensorQuantizer(), "a test")
    text = graph_text(rw.gm)
    assert "mul = mul(act, gain)" in text
    assert "add = add(mul, quantizer)" in text


def test_a_replaced_module_takes_the_mode_of_the_old_one() -> None:
    rw, _ = rewriter()
    rw.replace_module("act", nn.Sigmoid().train(), "a test")
    assert not rw.gm.get_submodule("act").training


def test_a_stored_tensor_is_read_where_it_is_asked_for() -> None:
    rw, nodes = rewriter()
    node = rw.read_tensor(nodes["add"], "deep.inside.step", torch.tensor(2.0))
    assert float(rw.tensor(node)) == 2
    assert float(rw.gm.get_buffer("deep.inside.step")) == 2


def test_erasing_what_is_still_read_is_refused_by_name() -> None:
    rw, nodes = rewriter()
    with pytest.raises(fxq.PassError, match="pass 'test' erases 'act', which mul still reads"):
        rw.erase(nodes["act"], "a test")


def test_what_reads_nothing_is_not_bypassed_without_a_source_and_no_edge_is_nowhere_to_insert() -> None:
    rw, nodes = rewriter()
    with pytest.raises(fxq.PassError, match=r"pass 'test' bypasses 'x', which reads nothing .*: give them a source"):
        rw.bypass(nodes["x"], "a test")
    with pytest.raises(fxq.PassError, match="pass 'test' inserts 'here' on no edge"):
        rw.insert_module_on([], "here", nn.Identity(), "a test")


def test_one_input_of_several_may_be_exchanged() -> None:
    rw, nodes = rewriter()
    rw.replace_input(nodes["add"], nodes["act"], nodes["x"], "a test")
    assert [edge.producer.name for edge in input_edges(nodes["add"])] == ["mul", "x"]
    assert next(edge.producer.name for edge in input_edges(nodes["mul"])) == "act"


def test_inserted_nodes_inherit_no_plans() -> None:
    rw, nodes = rewriter()
    rw.plan_output(nodes["act"], fxq.QuantDescriptor(), "a test")
    new = rw.insert_call(nodes["mul"], torch.neg, (nodes["act"],), like=nodes["act"])
    assert not [key for key in new.meta if key.startswith("fxq_")]


def test_a_tensor_that_is_overwritten_later_gets_no_plan() -> None:
    class Overwritten(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            z = y + 1
            y.mul_(2)
            return z + y

    gm = trace(Overwritten().eval(), (X,))
    rw = Rewriter(gm, Settings(fxq.get_target("tensorrt")), Record(), "test")
    nodes = {node.name: node for node in gm.graph.nodes}
    rw.plan_input(nodes["add"], 0, fxq.QuantDescriptor(), "a test")
    ((action, node, reason),) = written(rw)
    assert (action, node) == ("skip", "add")
    assert reason.startswith("'mul' is overwritten in place by 'mul_")
