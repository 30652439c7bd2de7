"""Each rule of each stage, broken once."""

import operator
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import fxq
from fxq.graph import check_graph
from fxq.graph.plan import Plan, note_plan
from fxq.graph.trace import trace
from fxq.nn import TensorQuantizer
from fxq.quant import DEQUANTIZE, DYNAMIC_LINEAR, QUANTIZE

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def plan(slot: int | str, role: str = "input") -> Plan:
    return Plan(slot, fxq.QuantDescriptor(), role, "a test", "to break a rule")


def traced(*layers: nn.Module) -> GraphModule:
    return trace(nn.Sequential(*layers).eval(), (X,))


def dead_node() -> GraphModule:
    gm = traced(nn.ReLU())
    with gm.graph.inserting_before(gm.graph.output_node()):
        gm.graph.call_function(operator.neg, (next(iter(gm.graph.nodes)),))
    return gm


def missing_module() -> GraphModule:
    gm = traced(nn.ReLU())
    del gm._modules["0"]
    return gm


def wrong_order() -> GraphModule:
    gm = traced(nn.ReLU(), nn.Sigmoid())
    relu, sigmoid = (node for node in gm.graph.nodes if node.op == "call_module")
    sigmoid.append(relu)
    return gm


def plan_without_input() -> GraphModule:
    gm = traced(nn.ReLU())
    node = next(node for node in gm.graph.nodes if node.op == "call_module")
    note_plan(node, plan(3))
    return gm


def plan_without_quantizer() -> GraphModule:
    gm = traced(nn.ReLU())
    node = next(node for node in gm.graph.nodes if node.op == "call_module")
    note_plan(node, plan(0))
    return gm


def plan_inside_without_swap() -> GraphModule:
    gm = traced(nn.Linear(4, 4))
    note_plan(next(node for node in gm.graph.nodes if node.op == "call_module"), plan("weight", "weight"))
    return gm


def quantize_read_directly() -> GraphModule:
    gm = traced(nn.ReLU())
    gm.register_buffer("scale", torch.ones(()))
    gm.register_buffer("zero", torch.zeros((), dtype=torch.int8))
    node = next(node for node in gm.graph.nodes if node.op == "call_module")
    with gm.graph.inserting_before(node):
        scale, zero = gm.graph.get_attr("scale"), gm.graph.get_attr("zero")
        codes = gm.graph.call_function(QUANTIZE, (node.args[0], scale, zero, None, -128, 127, torch.int8))
    node.args = (codes,)
    return gm


def dequantize_of_float() -> GraphModule:
    gm = traced(nn.ReLU(), nn.ReLU())
    gm.register_buffer("scale", torch.ones(()))
    gm.register_buffer("zero", torch.zeros((), dtype=torch.int8))
    second = next(node for node in gm.graph.nodes if node.target == "1")
    with gm.graph.inserting_before(second):
        scale, zero = gm.graph.get_attr("scale"), gm.graph.get_attr("zero")
        value = gm.graph.call_function(DEQUANTIZE, (second.args[0], scale, zero, None, torch.float32))
    second.args = (value,)
    return gm


def dynamic_linear_of_computed_codes() -> GraphModule:
    gm = fxq.convert(fxq.prepare(nn.Sequential(nn.Linear(4, 4)).eval(), X, "dynamic"))
    layer = next(node for node in gm.graph.nodes if node.target is DYNAMIC_LINEAR)
    with gm.graph.inserting_before(layer):
        layer.update_arg(1, gm.graph.call_function(torch.neg, (layer.args[1],)))
    return gm


BROKEN: dict[str, tuple[Callable[[], GraphModule], fxq.Stage, str]] = {
    "dead node": (dead_node, fxq.Stage.TRACED, "node 'neg' is dead: erase it or give it a reader"),
    "missing module": (missing_module, fxq.Stage.TRACED, "0"),
    "used before made": (wrong_order, fxq.Stage.TRACED, "used before it has been defined"),
    "identity": (lambda: traced(nn.Identity()), fxq.Stage.NORMALIZED, "node '_0' is an identity"),
    "dropout": (lambda: traced(nn.Dropout()), fxq.Stage.NORMALIZED, "node '_0' is a dropout"),
    "dropout later": (lambda: traced(nn.Dropout()), fxq.Stage.PREPARED, "node '_0' is a dropout"),
    "plan without input": (plan_without_input, fxq.Stage.PLANNED, "has a plan for input 3 and only 1 inputs"),
    "plan without quantizer": (plan_without_quantizer, fxq.Stage.PREPARED, "is planned and has no quantizer"),
    "plan inside": (
        plan_inside_without_swap,
        fxq.Stage.PREPARED,
        "'weight' of '0' is planned and has no quantizer that is on",
    ),
    "two quantizers in a row": (
        lambda: traced(TensorQuantizer(), TensorQuantizer()),
        fxq.Stage.PREPARED,
        "quantizer '1' reads the quantizer '0'",
    ),
    "no range": (lambda: traced(TensorQuantizer()), fxq.Stage.FROZEN, "quantizer '0' has no range"),
    "not lowered": (lambda: traced(TensorQuantizer()), fxq.Stage.LOWERED, "quantizer '0' was not lowered"),
    "weight not lowered": (
        lambda: traced(fxq.nn.QuantLinear(4, 4)),
        fxq.Stage.LOWERED,
        "'0._weight_quantizer' was not",
    ),
    "quantize read directly": (
        quantize_read_directly,
        fxq.Stage.LOWERED,
        "is read by something else than a dequantize",
    ),
    "computed weight": (
        dynamic_linear_of_computed_codes,
        fxq.Stage.LOWERED,
        "argument 1 of '_0' is a weight, and neg is no stored tensor",
    ),
    "dequantize of float": (dequantize_of_float, fxq.Stage.LOWERED, "neither a quantize nor a stored tensor"),
}


@pytest.mark.parametrize(("build", "stage", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_is_named(build: Callable[[], GraphModule], stage: fxq.Stage, message: str) -> None:
    with pytest.raises(fxq.GraphError, match=f"^the graph breaks the rules of stage '{stage}': .*{message}"):
        check_graph(build(), stage)


def test_dropout_is_allowed_in_a_model_that_will_be_trained() -> None:
    check_graph(traced(nn.Dropout()), fxq.Stage.NORMALIZED, qat=True)


def test_a_sound_graph_passes_at_every_stage_it_went_through() -> None:
    prepared = fxq.prepare(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), X)
    for stage in (fxq.Stage.TRACED, fxq.Stage.NORMALIZED, fxq.Stage.PLANNED, fxq.Stage.PREPARED):
        check_graph(prepared, stage)
    fxq.calibrate(prepared, [X], progress=False)
    check_graph(fxq.convert(prepared), fxq.Stage.LOWERED)


def test_a_dynamic_quantizer_needs_no_range() -> None:
    descriptor = fxq.QuantDescriptor(unsigned=True, symmetric=False, calibrator="dynamic")
    check_graph(traced(TensorQuantizer(descriptor)), fxq.Stage.FROZEN)


def test_many_broken_rules_are_counted() -> None:
    with pytest.raises(fxq.GraphError, match=r"\(and 3 more\)"):
        check_graph(traced(*[nn.Identity() for _ in range(8)]), fxq.Stage.NORMALIZED)
