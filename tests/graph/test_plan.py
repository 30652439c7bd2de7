"""Plans: where they may stand, what becomes of them, and which of them are of no use."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq import QuantDescriptor
from fxq.graph import graph_text, planned_inputs, planned_inside, planned_output, plans_by_module, plans_of
from fxq.graph.settings import Settings
from fxq.graph.trace import trace
from fxq.pipeline import run_passes
from fxq.record import Record
from fxq.registry import tables
from fxq_passes import AttachObservers, InsertQuantizers, SolveScales

INT8, PER_CHANNEL = QuantDescriptor(), QuantDescriptor(axis=0)
X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
Wanted = tuple[str, int | str, QuantDescriptor]


class Planning(fxq.Pass):
    """Plans what a test asks for."""

    stage = fxq.Stage.PLANNED
    name = "planning"

    def __init__(self, *wanted: Wanted) -> None:
        self.wanted = wanted

    def run(self, rw: fxq.Rewriter) -> None:
        nodes = {node.name: node for node in rw.nodes()}
        for name, slot, descriptor in self.wanted:
            if slot == "output":
                rw.plan_output(nodes[name], descriptor, why="a test")
            elif isinstance(slot, str):
                rw.plan_inside(nodes[name], slot, descriptor, why="a test")
            else:
                rw.plan_input(nodes[name], slot, descriptor, why="a test")


def run(model: nn.Module, *wanted: Wanted, carry_out: bool = True, target: str = "tensorrt") -> tuple[GraphModule, Any]:
    """Return the graph of ``model`` with nothing but the plans ``wanted``, carried out or not, and the record."""
    gm, record = trace(model.eval(), (X,)), Record()
    settings = Settings(fxq.get_target(target), example_inputs=(X,))
    steps = [Planning(*wanted), SolveScales(), *([InsertQuantizers(), AttachObservers()] if carry_out else [])]
    for step in steps:
        run_passes(gm, [step], settings, record, complete=False)
    return gm, record


def node(gm: GraphModule, name: str) -> Any:
    return next(node for node in gm.graph.nodes if node.name == name)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.twice = nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(torch.tanh(self.pool(self.conv(x)))))


def test_a_node_holds_a_plan_for_each_of_its_tensors() -> None:
    gm, _ = run(Net(), ("conv", 0, INT8), ("conv", "weight", PER_CHANNEL), ("conv", "output", INT8), carry_out=False)
    conv = node(gm, "conv")
    assert list(plans_of(conv)) == [0, "weight", "output"]
    assert [plan.role for plan in plans_of(conv).values()] == ["input", "weight", "output"]
    assert list(planned_inputs(conv)) == [0]
    assert list(planned_inside(conv)) == ["weight"]
    assert planned_output(conv).pass_name == "planning"
    assert graph_text(gm).splitlines()[1] == (
        "conv = Conv2d[conv](x)  # input 0: int8 per tensor; weight: int8 per channel (axis 0); output: int8 per tensor"
    )


def test_modules_are_swapped_and_quantizers_inserted_from_plans_alone() -> None:
    gm, _ = run(Net(), ("conv", 0, INT8), ("conv", "weight", PER_CHANNEL), ("pool", "input", INT8))
    assert graph_text(gm) == "\n".join([
        "x = input",
        "conv_input_quantizer = TensorQuantizer[conv_input_quantizer](x)",
        "conv = QuantConv2d[conv](conv_input_quantizer)  # input 0: int8 per tensor",
        "pool = QuantMaxPool2d[pool](conv)",
        "tanh = tanh(pool)",
        "twice = Conv2d[twice](tanh)",
        "twice_1 = Conv2d[twice](twice)",
        "return twice_1",
    ])  # fmt: skip
    quantizers = {path: found for path, found in gm.named_modules() if isinstance(found, fxq.TensorQuantizer)}
    assert {path: found.is_enabled for path, found in quantizers.items()} == {
        "conv._weight_quantizer": True,
        "pool._input_quantizer": True,
        "conv_input_quantizer": True,
    }
    assert quantizers["conv._weight_quantizer"].descriptor == PER_CHANNEL


def test_one_call_that_is_planned_is_enough_for_a_module_that_is_called_twice() -> None:
    gm, _ = run(Net(), ("twice_1", 0, INT8), ("twice_1", "weight", PER_CHANNEL))
    assert isinstance(gm.get_submodule("twice"), fxq.nn.QuantConv2d)
    assert list(plans_by_module(gm)) == ["twice"]


def test_two_calls_of_a_module_that_are_planned_differently_are_an_error() -> None:
    with pytest.raises(fxq.PassError, match=r"'weight' of 'twice' is planned as int8 per channel .* plan them alike"):
        run(Net(), ("twice", 0, INT8), ("twice", "weight", PER_CHANNEL), ("twice_1", "weight", INT8))


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (("conv", "weight", PER_CHANNEL), "its input is not quantized, so its weight stays in float too"),
        (("conv", 0, INT8), "its weight stays in float, so its input is not quantized for it"),
    ],
    ids=["weight alone", "input alone"],
)
def test_half_a_plan_is_dropped_with_a_reason(wanted: Wanted, why: str) -> None:
    gm, record = run(Net(), wanted)
    assert not plans_of(node(gm, "conv"))
    assert [entry.text for entry in record.skipped("conv")] == [why]
    assert not [module for module in gm.modules() if isinstance(module, fxq.TensorQuantizer)]


@pytest.mark.parametrize("comes", ["behind solve_scales", "without it"])
def test_half_a_plan_is_not_carried_out_wherever_it_was_made(comes: str) -> None:
    class PlansInputs(fxq.Pass):
        name, stage = "plans_inputs", fxq.Stage.PLANNED

        def run(self, rw: fxq.Rewriter) -> None:
            for node in rw.nodes(lambda node: node.name == "conv"):
                rw.plan_input(node, 0, INT8, why="a test")

    before = tables.snapshot()
    fxq.register_pass("plans_inputs")(PlansInputs)
    try:
        recipe = fxq.recipe("tensorrt").without_pass("plan_ops").without_pass("plan_residual_adds")
        if comes == "without it":
            recipe = recipe.without_pass("solve_scales").with_pass("plans_inputs")
        else:
            recipe = recipe.with_pass("plans_inputs", after="solve_scales")
        with pytest.warns(UserWarning, match="nothing was quantized"):
            prepared = fxq.prepare(Net().eval(), X, recipe)
    finally:
        tables.restore(before)
    assert not [module for module in prepared.modules() if isinstance(module, fxq.TensorQuantizer)]
    assert "its weight stays in float" in fxq.explain(prepared)["conv"].reason


class StoredFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix @ x


class StoredLast(StoredFirst):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


@pytest.mark.parametrize(("model", "position"), [(StoredFirst, 0), (StoredLast, 1)])
def test_a_stored_matrix_alone_is_dropped_wherever_it_stands(model: type[nn.Module], position: int) -> None:
    class PlansMatrix(fxq.Pass):
        name, stage = "plans_matrix", fxq.Stage.PLANNED

        def run(self, rw: fxq.Rewriter) -> None:
            for node in rw.nodes(lambda node: node.name == "matmul"):
                rw.plan_input(node, position, PER_CHANNEL, why="a test", role="weight")

    gm, record = trace(model().eval(), (X,)), Record()
    settings = Settings(fxq.get_target("tensorrt"), example_inputs=(X,))
    for step in (PlansMatrix(), SolveScales(), InsertQuantizers(), AttachObservers()):
        run_passes(gm, [step], settings, record, complete=False)
    assert not [module for module in gm.modules() if isinstance(module, fxq.TensorQuantizer)]
    assert [entry.text for entry in record.skipped("matmul")][-1].startswith("its input is not quantized")


@pytest.mark.parametrize(("slot", "name"), [(0, "conv"), ("weight", "conv"), ("output", "tanh")])
def test_a_plan_that_was_carried_out_is_not_taken_back(slot: int | str, name: str) -> None:
    class TakesBack(fxq.Pass):
        name, stage = "takes_back", fxq.Stage.PREPARED

        def run(self, rw: fxq.Rewriter) -> None:
            rw.drop_plan(next(node for node in rw.nodes() if node.name == name), slot, "too late")

    gm, record = run(Net(), ("conv", 0, INT8), ("conv", "weight", PER_CHANNEL), ("tanh", "output", INT8))
    with pytest.raises(fxq.PassError, match="plans were carried out before it"):
        run_passes(gm, [TakesBack()], Settings(fxq.get_target("tensorrt"), example_inputs=(X,)), record, complete=False)


def test_a_weight_alone_is_kept_where_the_target_computes_in_float() -> None:
    gm, _ = run(Net(), ("conv", "weight", PER_CHANNEL), target="weight_only")
    assert isinstance(gm.get_submodule("conv"), fxq.nn.QuantConv2d)


def test_a_weight_is_kept_where_the_output_of_what_it_reads_is_planned() -> None:
    wanted = [("pool", "output", INT8), ("twice", "weight", PER_CHANNEL), ("tanh", "output", INT8)]
    gm, _ = run(Net(), *wanted)
    assert isinstance(gm.get_submodule("twice"), fxq.nn.QuantConv2d)


WRONG: dict[str, tuple[Wanted, str]] = {
    "no such tensor": (
        ("conv", "wieght", INT8),
        "'planning' plans 'wieght' inside of 'conv', and a Conv2d has no such",
    ),
    "input of a layer": (("conv", "input", INT8), "no such tensor to quantize; it has weight"),
    "a function": (("tanh", "weight", INT8), "'tanh': it calls no module; plan an input of it, or its output"),
    "no such input": (("conv", 3, INT8), "node 'conv' has 1 inputs, counted from 0, no input 3"),
    "an input that is no number": (
        ("conv", None, INT8),  # type: ignore[dict-item]  # the mistake under test
        "no input None; what its module holds, such as a weight, is planned by rw.plan_inside",
    ),
}


@pytest.mark.parametrize(("wanted", "message"), WRONG.values(), ids=WRONG)
def test_a_plan_that_cannot_be_is_an_error_that_names_pass_and_node(wanted: Wanted, message: str) -> None:
    with pytest.raises(fxq.PassError, match=message):
        run(Net(), wanted)


def test_what_has_no_quantized_version_or_is_quantized_by_hand_cannot_be_planned_inside() -> None:
    with pytest.raises(fxq.PassError, match="QUANTIZED has no quantized version of Tanh"):
        run(nn.Sequential(nn.Tanh()), ("_0", "input", INT8))
    with pytest.raises(fxq.PassError, match="QuantConv2d has its own quantizers"):
        run(nn.Sequential(fxq.nn.QuantConv2d(4, 4, 1)), ("_0", "weight", INT8))
