"""Plugins that quantize layers: plans are all it takes, and quantizers that would stay off are refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxq
from fxq.registry import load_plugins, tables

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The test plugin's passes, as a package outside of fxq registers them; gone afterwards."""
    load_plugins()
    before = tables.snapshot()
    monkeypatch.syspath_prepend(Path(__file__).parent / "plugin")
    from fxq_test_plugin import quantizing

    for name, pass_type in (
        ("plan_leftovers", quantizing.PlanLeftovers),
        ("swap_linear_switched_off", quantizing.SwapLinearSwitchedOff),
    ):
        fxq.register_pass(name)(pass_type)
    yield quantizing
    tables.restore(before)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def without_plans() -> fxq.Recipe:
    return fxq.recipe("tensorrt").without_pass("plan_ops").without_pass("plan_residual_adds")


def test_a_plugin_that_plans_weights_and_inputs_quantizes_the_layers(plugin: Any, tmp_path: Path) -> None:
    by_plugin = fxq.quantize(model(), [X], without_plans().with_pass("plan_leftovers"), X, progress=False)
    built_in = fxq.quantize(model(), [X], "tensorrt", X, progress=False)
    assert by_plugin.get_buffer("0.weight").dtype is torch.int8
    assert torch.equal(by_plugin(X), built_in(X))
    found = fxq.explain(by_plugin)["0"].quantized
    assert [(tensor.role, tensor.pass_name) for tensor in found] == [
        ("input", "plan_leftovers"),
        ("weight", "plan_leftovers"),
    ]
    assert fxq.export_onnx(by_plugin, tmp_path / "model.onnx").quantize_nodes == 2


def test_a_planned_weight_has_a_range_for_each_output_channel_wherever_they_are(plugin: Any, tmp_path: Path) -> None:
    """The second dimension of a transposed convolution, the first of others: ``rw.target.weight`` says axis 0."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 5, 2, 2)).eval()
    x = torch.randn(2, 3, 6, 6)
    gm = fxq.quantize(net, [x], without_plans().with_pass("plan_leftovers"), x, progress=False)
    assert [gm.get_buffer(f"{path}.weight_scale").shape for path in "01"] == [(4,), (5,)]
    assert fxq.export_onnx(gm, tmp_path / "model.onnx").quantize_nodes == 2


@pytest.mark.parametrize("off", ["disable", "disable_quant"])
def test_a_plugin_that_swaps_with_quantizers_off_is_refused_by_name(plugin: Any, off: str) -> None:
    recipe = fxq.recipe("tensorrt").with_pass("swap_linear_switched_off", off=off)
    with pytest.raises(fxq.PassError) as caught:
        fxq.prepare(model(), X, recipe)
    message = str(caught.value)
    assert message.startswith("pass 'swap_linear_switched_off' (fxq_test_plugin.quantizing.SwapLinearSwitchedOff)")
    assert (
        "quantizers that are off and that nothing will switch on: 0._weight_quantizer; 2._weight_quantizer" in message
    )
    assert "rw.plan_inside" in message


@pytest.mark.parametrize("stage", [fxq.Stage.PREPARED, fxq.Stage.CALIBRATED, fxq.Stage.FROZEN], ids=str)
def test_a_plan_that_comes_too_late_is_refused_with_the_stage_to_declare(stage: fxq.Stage) -> None:
    class PlansLate(fxq.Pass):
        name = "plans_late"

        def run(self, rw: fxq.Rewriter) -> None:
            for node in rw.nodes(lambda node: node.op == "call_module" and node.target == "1"):
                rw.plan_output(node, rw.target.activation, why="a test")

    PlansLate.stage = stage
    load_plugins()
    before = tables.snapshot()
    try:
        fxq.register_pass("plans_late")(PlansLate)
        with pytest.raises(
            fxq.PassError, match=rf"'plans_late' of stage '{stage}' plans for '_1'.*declare stage = fxq.Stage.PLANNED"
        ):
            fxq.quantize(model(), [X], fxq.recipe("tensorrt").with_pass("plans_late"), X, progress=False)
    finally:
        tables.restore(before)


def test_a_quantizer_that_the_user_switched_off_is_no_fault_of_a_pass() -> None:
    layer = fxq.nn.QuantLinear(6, 3)
    layer.weight_quantizer.disable()
    assert not fxq.prepare(nn.Sequential(layer).eval(), X).get_submodule("0").weight_quantizer.is_enabled
