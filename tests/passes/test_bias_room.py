"""Steps leave a bias what it is; where all have room at one look, nothing is looked at one by one."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.graph import module_of
from fxq.nn import WeightQuantized
from fxq.record import Record
from fxq.state import require_state
from fxq_passes.lowering import bias_room

X = torch.linspace(-1, 1, 8).reshape(1, 2, 2, 2)


def no_change(gm: GraphModule) -> None:
    pass


def zero_channel(gm: GraphModule) -> None:
    gm.get_submodule("0").weight_quantizer.amax = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)


def zero_channel_and_bias(gm: GraphModule) -> None:
    zero_channel(gm)
    for path in ("0.bias", "2.bias"):
        gm.get_parameter(path).data.zero_()


def zero_weight(gm: GraphModule) -> None:
    gm.get_submodule("2").weight_quantizer.amax = torch.zeros(2, 1, 1, 1)


def zero_input(gm: GraphModule) -> None:
    gm.get_submodule("2_input_quantizer").amax = 0.0


def large_bias(gm: GraphModule) -> None:
    gm.get_parameter("2.bias").data[0] = 1e7


def small_steps(gm: GraphModule) -> None:
    gm.get_submodule("0").weight_quantizer.amax = torch.tensor([1e-5, 1.0]).reshape(2, 1, 1, 1)
    gm.get_submodule("0_input_quantizer").amax = 1e-5


def ranges_with_room(change: Callable[[GraphModule], None]) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1)).eval()
    prepared = fxq.prepare(model, X, recipe="tensorrt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fxq.calibrate(prepared, [X], progress=False)
    change(prepared)
    rw = fxq.Rewriter(prepared, require_state(prepared, fxq.Stage.PREPARED, "a test").settings, Record(), "a test")
    calls = rw.nodes(lambda node: node.op == "call_module" and isinstance(module_of(node), WeightQuantized))
    bias_room.make_room(rw, [(node, rw.module(node)) for node in calls])
    return [one.range[1].clone() for one in prepared.modules() if isinstance(one, fxq.TensorQuantizer)]


@pytest.mark.parametrize(
    "change", [no_change, zero_channel, zero_channel_and_bias, zero_weight, zero_input, large_bias, small_steps]
)
def test_one_look_at_all_finds_what_a_look_at_each_finds(
    change: Callable[[GraphModule], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ranges_with_room(change)
    monkeypatch.setattr(bias_room, "_have_room", lambda *_: False)
    assert all(map(torch.equal, found, ranges_with_room(change)))
    assert all(map(torch.equal, found, ranges_with_room(no_change))) == (change is no_change)


def test_where_all_have_room_none_is_looked_at_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bias_room, "_Ranges", lambda _: None)
    ranges_with_room(no_change)
