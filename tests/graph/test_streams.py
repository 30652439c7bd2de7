"""rw.run_both: float and quantized values node by node, both fresh behind a change."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.small import images, residual
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import fxq
from fxq.batches import Inputs
from fxq.graph import is_weighted
from fxq.graph.data_stage import DataStage
from fxq.graph.float_model import copied_weights, in_float
from fxq.graph.streams import Streams
from fxq.record import Record
from fxq.state import find_state

DATA = images(8)


def calibrated(model: nn.Module, data: Tensor = DATA, recipe: str = "tensorrt") -> GraphModule:
    gm = fxq.prepare(model, data[:2], recipe)
    fxq.calibrate(gm, [data])
    return gm


def rewriter(gm: GraphModule, *batches: Any) -> fxq.Rewriter:
    data = fxq.Data(list(batches) or [DATA[:5], DATA[5:]], held_out=0, progress=False)
    data.begin(keep=True, hold_out=False)
    state = find_state(gm)
    assert state is not None
    return fxq.Rewriter(gm, state.settings, Record(), "test", DataStage(data, copied_weights(gm)))


def outputs(values: list[Tensor]) -> Tensor:
    return torch.cat(values)


def node(gm: GraphModule, name: str) -> Node:
    return next(found for found in gm.graph.nodes if found.name == name)


def test_values_are_those_of_the_float_and_of_the_quantized_model() -> None:
    model = residual()
    gm = calibrated(model)
    [(found, (float_values, quantized_values))] = list(rewriter(gm).run_both([node(gm, "fc")]))
    assert found.name == "fc"
    assert [len(value) for value in float_values] == [5, 3]
    with torch.no_grad():
        # The batch norm is folded: float32 sums in another order.
        torch.testing.assert_close(outputs(float_values), model(DATA), rtol=1e-5, atol=1e-5)
        assert torch.equal(outputs(quantized_values), torch.cat([gm(DATA[:5]), gm(DATA[5:])]))


def test_nodes_come_in_execution_order_whatever_the_order_of_asking() -> None:
    gm = calibrated(residual())
    asked = list(reversed(gm.graph.find_nodes(op="call_module")))
    assert [found for found, _ in rewriter(gm).run_both(asked)] == asked[::-1]


def test_both_streams_see_what_was_changed_at_a_node_before() -> None:
    gm = calibrated(residual())
    rw = rewriter(gm)
    layers = rw.nodes(is_weighted)
    seen = {}
    for found, (float_values, quantized_values) in rw.run_both(layers):
        seen[found.name] = outputs(quantized_values), outputs(float_values)
        if found.name == "conv1":
            bias = rw.module(found).bias.detach() + 1
            rw.set_bias("conv1", bias, "to see it")
    with torch.no_grad():
        now = torch.cat([gm(DATA[:5]), gm(DATA[5:])])
        assert torch.equal(seen["fc"][0], now)
        with in_float(gm, {**copied_weights(gm), "conv1.bias": gm.conv1.bias.detach() - 1}):
            # The reference keeps the weights of prepare.
            torch.testing.assert_close(seen["fc"][1], gm(DATA), rtol=1e-5, atol=1e-5)


LAYERS = {
    "convolution": (nn.Conv2d(3, 4, 3), torch.randn(6, 3, 8, 8)),
    "transposed convolution": (nn.ConvTranspose1d(3, 4, 3, bias=False), torch.randn(6, 3, 8)),
    "linear": (nn.Linear(8, 4), torch.randn(6, 5, 8)),
    "in double precision": (nn.Linear(8, 4, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)),
}


@pytest.mark.parametrize("changes_weight", [False, True])
@pytest.mark.parametrize(("layer", "x"), LAYERS.values(), ids=LAYERS.keys())
def test_what_is_read_behind_a_changed_layer_is_what_it_computes_now(
    layer: nn.Module, x: Tensor, changes_weight: bool
) -> None:
    gm = calibrated(nn.Sequential(layer, nn.Tanh()).eval(), x)
    rw = rewriter(gm, x[:4], x[4:])
    first, behind = node(gm, "_0"), node(gm, "_1")
    before = gm(x).detach()
    seen = {}
    for found, (_, quantized_values) in rw.run_both([first, behind]):
        seen[found] = quantized_values
        if found is first:
            weight = rw.module(first).weight.detach()
            rw.set_bias("0", torch.linspace(-1, 1, 4).to(weight.dtype), "to see it")
            if changes_weight:
                rw.set_weight("0", -weight, "to see it")
    now = gm(x).detach()
    torch.testing.assert_close(outputs(seen[behind]), now, rtol=0, atol=1e-6)  # a bias is added to what was rounded
    assert float((now - before).abs().max()) > 0.1


def test_a_hook_sees_the_layer_as_it_is_now() -> None:
    x = torch.randn(6, 8)
    gm = calibrated(nn.Sequential(nn.Linear(8, 4), nn.Tanh()).eval(), x)
    gm.get_submodule("0").register_forward_hook(lambda module, inputs, output: 0.1 * output)
    rw = rewriter(gm, x)
    first, behind = node(gm, "_0"), node(gm, "_1")
    seen = {}
    for found, (_, quantized_values) in rw.run_both([first, behind]):
        seen[found] = quantized_values
        if found is first:
            rw.set_bias("0", torch.linspace(-1, 1, 4), "to see it")
    assert torch.equal(outputs(seen[behind]), gm(x).detach())


def test_an_equivalent_rewrite_changes_both_streams_inside_and_neither_in_the_end() -> None:
    gm = calibrated(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval(), torch.randn(8, 6))
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    rw = rewriter(gm, x)
    before = dict(rw.run_both(rw.nodes(is_weighted)))
    first, last = gm.get_submodule("0"), gm.get_submodule("2")
    for path, change in (("0", first.weight * 2), ("2", last.weight / 2)):
        rw.set_weight(path, change.detach(), "a factor of 2 moves on", is_equivalent=True)
    rw.set_bias("0", first.bias.detach() * 2, "a factor of 2 moves on", is_equivalent=True)
    after = dict(rw.run_both(rw.nodes(is_weighted)))
    one, two = rw.nodes(is_weighted)
    torch.testing.assert_close(after[one].float_values[0], 2 * before[one].float_values[0])
    torch.testing.assert_close(after[two].float_values[0], before[two].float_values[0])


def test_the_float_stream_sees_an_equivalent_rewrite_at_a_node_and_no_other() -> None:
    gm = calibrated(nn.Sequential(nn.Linear(6, 4), nn.Identity(), nn.Linear(4, 3)).eval(), torch.randn(8, 6))
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    rw = rewriter(gm, x)
    one, two = rw.nodes(is_weighted)
    before = dict(rw.run_both([one, two]))
    for found, _ in (walk := rw.run_both([one, two])):
        layer = rw.module(found)
        rw.set_weight("0", layer.weight.detach() * 2, "a factor of 2 moves on", is_equivalent=True)
        rw.set_bias("0", layer.bias.detach() * 2, "a factor of 2 moves on", is_equivalent=True)
        rw.set_weight("2", rw.module(two).weight.detach() / 2, "a factor of 2 moves on", is_equivalent=True)
        break
    [(_, after)] = walk
    torch.testing.assert_close(after.float_values[0], before[two].float_values[0])
    for found, _ in (walk := rw.run_both([one, two])):
        rw.set_bias("0", rw.module(found).bias.detach() + 1, "a correction")
        break
    [(_, corrected)] = walk
    torch.testing.assert_close(corrected.float_values[0], before[two].float_values[0])


def test_an_equivalent_rewrite_of_a_corrected_bias_is_refused() -> None:
    gm = calibrated(residual())
    rw = rewriter(gm)
    rw.set_bias("fc", torch.ones(10), "a correction")
    with pytest.raises(fxq.PassError, match=r"'test' rewrites 'fc.bias' equivalently after another pass corrected it"):
        rw.set_bias("fc", torch.ones(10), "a rewrite", is_equivalent=True)


def test_a_change_behind_the_streams_is_refused() -> None:
    gm = calibrated(residual())
    rw = rewriter(gm)

    def change_what_was_passed() -> None:
        for found, _ in rw.run_both(rw.nodes(is_weighted)):
            if found.name == "fc":
                rw.set_bias("conv1", torch.zeros(4), "too late")

    with pytest.raises(fxq.PassError, match=r"changes 'conv1.bias' at node 'fc', when the streams have left 'conv1'"):
        change_what_was_passed()


def test_a_range_that_is_set_at_its_quantizer_is_seen_behind_it() -> None:
    gm = calibrated(residual())
    rw = rewriter(gm)
    quantizer = node(gm, "conv1_input_quantizer")
    for found, values in rw.run_both([quantizer, node(gm, "fc")]):
        if found is quantizer:
            rw.module(found).amax = 0.5
        else:
            with torch.no_grad():
                assert torch.equal(outputs(values.quantized_values), torch.cat([gm(DATA[:5]), gm(DATA[5:])]))


def test_batches_may_differ_in_shape_and_come_as_keywords() -> None:
    gm = calibrated(residual())
    small = DATA[:, :, :6, :6]
    [(_, (values, _))] = list(rewriter(gm, {"x": DATA[:2]}, {"x": small}).run_both([node(gm, "conv1")]))
    assert [value.shape for value in values] == [(2, 4, 8, 8), (8, 4, 6, 6)]


def test_the_model_computes_in_float_inside_and_as_before_behind() -> None:
    gm = calibrated(residual())
    rw, x = rewriter(gm, DATA), torch.randn(2, *DATA.shape[1:])
    layer = next(module for module in gm.modules() if isinstance(module, fxq.nn.QuantLinear))
    bias = layer.bias.detach() + 1
    rw.set_bias(next(path for path, module in gm.named_modules() if module is layer), bias, "a test")
    with torch.no_grad():
        before = gm(x)
        with rw.in_float():
            in_float = gm(x)
        torch.testing.assert_close(in_float, residual()(x), rtol=1e-4, atol=1e-5)  # batch norm is folded
        assert torch.equal(gm(x), before)
        assert not torch.equal(in_float, before)


def test_tensors_are_freed_when_nothing_reads_them_any_more() -> None:
    gm = calibrated(nn.Sequential(*(nn.Linear(4, 4) for _ in range(6))).eval(), torch.randn(8, 4))
    alive: list[weakref.ref[Tensor]] = []
    rw = rewriter(gm, torch.randn(4, 4))
    for _, values in rw.run_both(rw.nodes(is_weighted)):
        # At a layer: its own values, those of its input and of the quantizer between, in both models.
        assert sum(found() is not None for found in alive) <= 2
        alive += [weakref.ref(tensor) for column in values for tensor in column]
        del values


class WritesInPlace(nn.Module):
    """Two readings of a tensor that is overwritten between them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        x[:, 0] = 1.0
        return self.last(x + y)


def test_what_writes_in_place_writes_into_one_stream_and_no_sample() -> None:
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    model = WritesInPlace().eval()
    gm = fxq.prepare(model, x.clone())
    fxq.calibrate(gm, [x.clone()])
    rw = rewriter(gm, x)
    for _ in range(2):  # the second walk reads the same samples
        [(_, (float_values, quantized_values))] = list(rw.run_both([node(gm, "last")]))
        with torch.no_grad():
            torch.testing.assert_close(float_values[0], model(x.clone()))
            assert torch.equal(quantized_values[0], gm(x.clone()))


def test_a_node_of_another_graph_is_refused() -> None:
    gm, other = calibrated(residual()), calibrated(residual())
    with pytest.raises(fxq.PassError, match="'test' asks for the values of fc, which is no node of the graph"):
        list(rewriter(gm).run_both([node(other, "fc")]))


@pytest.mark.parametrize("ask", [lambda rw: rw.data, lambda rw: list(rw.run_both([]))], ids=["data", "run_both"])
def test_a_pass_of_another_stage_has_no_data(ask: Callable[[fxq.Rewriter], Any]) -> None:
    gm = calibrated(residual())
    state = find_state(gm)
    assert state is not None
    with pytest.raises(fxq.PassError, match=r"'test' asks for data.*declare stage = fxq\.Stage\.CALIBRATED"):
        ask(fxq.Rewriter(gm, state.settings, Record(), "test"))


def test_weights_and_switches_are_as_before_after_a_walk_that_was_left() -> None:
    gm = calibrated(residual())
    shown, weights = str(gm), copied_weights(gm)
    for _ in rewriter(gm).run_both(gm.graph.find_nodes(op="call_module")):
        break
    assert str(gm) == shown
    assert all(torch.equal(value, weights[path]) for path, value in gm.named_parameters())


def test_streams_take_no_more_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = calibrated(residual())
    ran: list[str] = []
    gm.fc.register_forward_hook(lambda *_: ran.append("fc"))
    list(Streams(gm, rewriter(gm).data.kept(gm), copied_weights(gm), []).walk([node(gm, "conv1")], "test"))
    assert ran == []


def chain(function: Callable[[Tensor], Tensor], length: int) -> GraphModule:
    graph = torch.fx.Graph()
    found = graph.placeholder("x")
    for _ in range(length):
        found = graph.call_function(function, (found,))
    graph.output(found)
    return GraphModule(nn.Module(), graph)


def test_what_is_read_for_the_last_time_makes_room_batch_by_batch() -> None:
    living: list[weakref.ref[Tensor]] = []
    counts: list[int] = []

    def double(x: Tensor) -> Tensor:
        counts.append(sum(one() is not None for one in living))
        result = 2 * x
        living.append(weakref.ref(result))
        return result

    gm, batches = chain(double, 5), [Inputs((DATA[start : start + 2],), {}) for start in range(0, 8, 2)]
    asked = list(gm.graph.nodes)[-2]
    [(_, values)] = Streams(gm, batches, {}, []).walk([asked], "test")
    assert values.are_same
    torch.testing.assert_close(outputs(values.float_values), 32 * DATA, rtol=0, atol=0)
    *before, last = [max(counts[start : start + 4]) for start in range(0, 20, 4)]
    assert max(before) == 4
    assert last == 7  # a pass may change what was asked for, which is computed again then


def test_what_a_pass_keeps_of_a_walk_stays_whole() -> None:
    gm = calibrated(residual())
    asked = gm.graph.find_nodes(op="call_module")
    kept = dict(rewriter(gm).run_both(asked))
    one_by_one = {found: values for one in asked for found, values in rewriter(gm).run_both([one])}
    for found, both in kept.items():
        for values, expected in zip(both, one_by_one[found], strict=True):
            assert torch.equal(outputs(values), outputs(expected))
