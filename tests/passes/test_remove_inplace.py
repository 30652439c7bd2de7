from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq.graph import graph_text
from fxq.graph.trace import trace
from fxq.record import Record
from fxq.state import find_state
from fxq.testing import assert_rewrites
from fxq_passes import FunctionalToModule, RemoveInplace

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
Body = Callable[[Tensor], Any]


class Runs(nn.Module):
    """Runs ``body`` on a copy of its input, so that nothing is written outside of the graph."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(x * 1)


def test_an_inplace_module_becomes_out_of_place_and_later_readers_read_its_result() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True))
    record = assert_rewrites(
        [RemoveInplace()],
        model=model,
        inputs=X,
        before="""
            input_1 = input
            _0 = Conv2d[0](input_1)
            _1 = ReLU[1](_0)
            return _1
        """,
        after="""
            input_1 = input
            _0 = Conv2d[0](input_1)
            _1 = ReLU[1](_0)
            return _1
        """,
    )
    assert [entry.node for entry in record.of("remove_inplace", "edit")] == ["_1"]
    assert model[1].inplace  # type: ignore[union-attr]  # the user's model is not touched


class AliasedSkip(nn.Module):
    """``identity`` is another name for x, so that ``x += y`` changes it too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        identity = x
        x += 1.0
        return x * identity


def test_a_name_that_was_bound_before_an_augmented_assignment_sees_the_new_value() -> None:
    model = AliasedSkip().eval()
    assert_rewrites(
        [RemoveInplace()],
        model=model,
        inputs=X,
        before="""
            x = input
            conv = Conv2d[conv](x)
            iadd = iadd(conv, 1.0)
            mul = mul(iadd, conv)
            return mul
        """,
        after="""
            x = input
            conv = Conv2d[conv](x)
            iadd = add(conv, 1.0)
            mul = mul(iadd, iadd)
            return mul
        """,
    )
    expected = model(X.clone())  # eager python
    prepared = fxq.prepare(model, recipe=fxq.recipe("tensorrt").replace(passes=("remove_inplace",)))
    torch.testing.assert_close(prepared(X.clone()), expected, rtol=0, atol=0)


def read_later(function: Callable[[Tensor], Any]) -> Body:
    def body(x: Tensor) -> Tensor:
        function(x)  # the result is ignored: only the write counts
        return x + 1

    return body


def subtract_twice(x: Tensor) -> Tensor:
    y = x
    x -= 2
    x *= 3
    x /= 4
    return x + y


REMOVED = {
    "method": read_later(lambda x: x.add_(1)),
    "relu_": read_later(lambda x: x.relu_()),
    "clamp_": read_later(lambda x: x.clamp_(0, 1)),
    "torch.relu_": read_later(torch.relu_),
    "F.relu": read_later(lambda x: F.relu(x, inplace=True)),
    "F.relu positional": read_later(lambda x: F.relu(x, True)),
    "F.leaky_relu_": read_later(lambda x: F.leaky_relu_(x, 0.2)),
    "F.hardtanh": read_later(lambda x: F.hardtanh(x, -0.5, 0.5, True)),
    "F.dropout at inference": read_later(lambda x: F.dropout(x, 0.5, False, True)),
    "twice": lambda x: x.add_(1).mul_(2) + x,
    "augmented": subtract_twice,
    "masked": lambda x: x.masked_fill_(x > 0, 0.0) + x,
    "of a view, whose base is not read again": lambda x: x.view(2, -1).add_(1) * 2,
    "of a copy": lambda x: x.clone().add_(1) + x,
    "shape": lambda x: x.unsqueeze_(0).squeeze_(0) + 1,
}


@pytest.mark.parametrize("body", REMOVED.values(), ids=REMOVED)
def test_an_inplace_operation_is_replaced_and_computes_what_eager_python_does(body: Body) -> None:
    model = Runs(body).eval()
    expected = model(X)
    gm, record = removed(model)
    assert not record.of("remove_inplace", "skip")
    assert record.of("remove_inplace", "edit")
    torch.testing.assert_close(gm(X), expected, rtol=0, atol=0)  # the same kernels on other memory


def removed(model: nn.Module) -> tuple[torch.fx.GraphModule, Record]:
    """Run the passes that read in-place operations, without shapes."""
    prepared = fxq.prepare(model, recipe=fxq.recipe("tensorrt").replace(passes=("remove_inplace",)))
    state = find_state(prepared)
    assert state is not None
    return prepared, state.record


def add_to_view(x: Tensor) -> Tensor:
    x.view(2, -1).add_(1)
    return x * 2


def add_to_base(x: Tensor) -> Tensor:
    flat = x.flatten()
    x += 1
    return flat * 2


def write_corner(x: Tensor) -> Tensor:
    x[:, :, 0] = 0.0
    return x + 1


def copy_over(x: Tensor) -> Tensor:
    x.copy_(x * 2)
    return x + 1


def add_through_a_chain(x: Tensor) -> Tensor:
    flat = x.flatten()
    y = x.relu_()
    y.add_(1)
    return flat * 2


def keeps_half(x: Tensor) -> Tensor:
    y = x.half()
    y += x
    return y * 2


KEPT = {
    "a view": (add_to_view, "'mul' shares its memory"),
    "its base": (add_to_base, "'flatten' shares its memory"),
    "setitem": (write_corner, "has no out-of-place form"),
    "copy_": (copy_over, "has no out-of-place form"),
    "a chain": (add_through_a_chain, "'flatten' shares its memory"),
    "promotion": (keeps_half, "keeps torch.float16 where the out-of-place form would promote"),
}


@pytest.mark.parametrize(("body", "why"), KEPT.values(), ids=KEPT)
def test_an_inplace_operation_that_an_alias_can_tell_stays(body: Body, why: str) -> None:
    model = Runs(body).eval()
    text = graph_text(trace(model, (X,)))
    record = assert_rewrites([RemoveInplace()], model=model, inputs=X, after=text)
    assert all(why in entry.text for entry in record.of("remove_inplace", "skip"))
    assert record.of("remove_inplace", "skip")


@pytest.mark.parametrize(("body", "why"), KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_what_stays_in_place_is_quantized_as_eager_python_computes_it(body: Body, why: str, target: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), Runs(body), Flatten(), nn.Linear(144, 3)).eval()
    model[0].requires_grad_(False)
    if body is keeps_half:
        model[1].body = lambda x: keeps_half(x).float()
    prepared = fxq.prepare(model, X, recipe=target)
    for quantizer in prepared.modules():
        if isinstance(quantizer, fxq.TensorQuantizer):
            quantizer.disable()
    torch.testing.assert_close(prepared(X), model(X), rtol=1e-6, atol=1e-6)  # one weight layout, other kernels
    prepared = fxq.prepare(model, X, recipe=target)
    fxq.calibrate(prepared, [X], progress=False)
    error = (prepared(X) - model(X)).abs().max() / model(X).abs().max()
    assert error < 0.05  # 8 bits: a missed write would be off by the size of the values


class Flatten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


def test_a_module_keeps_its_switch_if_one_of_its_calls_has_to_stay() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(x * 1)
            flat = (x - 1).view(-1)
            self.relu(flat)
            y = x - 2
            seen = y.view(-1)
            self.relu(y)
            return seen + flat

    record = assert_rewrites(
        [RemoveInplace()], model=Twice().eval(), inputs=X, after=graph_text(trace(Twice().eval(), (X,)))
    )
    assert [entry.node for entry in record.of("remove_inplace", "skip")] == ["relu", "relu_1", "relu_2"]
    assert "another call of 'relu' has to stay so" in record.of("remove_inplace", "skip")[0].text


class CountsCalls(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.conv(x)


def test_a_write_to_a_buffer_stays_and_is_not_dead() -> None:
    prepared = fxq.prepare(CountsCalls().eval(), X)
    prepared(X)
    prepared(X)
    assert prepared.calls == 2


class WritesInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x.add_(1)
        return x * 2


def test_a_write_to_a_graph_input_no_longer_reaches_the_caller() -> None:
    x = X.clone()
    prepared = fxq.prepare(WritesInput().eval(), x, verify=True)
    torch.testing.assert_close(prepared(x), (X + 1) * 2, rtol=0, atol=0)
    torch.testing.assert_close(x, X, rtol=0, atol=0)


def test_a_write_that_nothing_reads_is_erased() -> None:
    def body(x: Tensor) -> Tensor:
        y = x * 2
        x.add_(1)
        return y

    gm, _ = removed(Runs(body).eval())
    assert graph_text(gm).splitlines() == ["x = input", "mul = mul(x, 1)", "mul_1 = mul(mul, 2)", "return mul_1"]


def test_arithmetic_on_sizes_is_not_in_place() -> None:
    class Sizes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            batch = x.shape[0]
            rows = batch
            rows *= 2
            return x.reshape(rows, -1) + batch

    model = Sizes().eval()
    for inputs in (X, None):
        prepared = fxq.prepare(model, inputs, recipe=fxq.recipe("tensorrt").replace(passes=("remove_inplace",)))
        torch.testing.assert_close(prepared(X), model(X), rtol=0, atol=0)


def test_functional_to_module_leaves_what_has_to_stay_in_place() -> None:
    def body(x: Tensor) -> Tensor:
        flat = x.view(-1)
        F.relu(x, inplace=True)
        return flat * 2

    record = assert_rewrites(
        [RemoveInplace(), FunctionalToModule()],
        model=Runs(body).eval(),
        inputs=X,
        after="""
            x = input
            mul = mul(x, 1)
            view = .view(mul, -1)
            relu = relu(mul, inplace=True)
            mul_1 = mul(view, 2)
            return mul_1
        """,
    )
    assert [entry.text for entry in record.of("functional_to_module", "skip")] == ["ReLU has no inplace"]


class WritesThenConvolves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x[:, :, 0] = 5.0
        return self.b(x)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_a_tensor_that_is_written_after_it_was_made_gets_no_quantizer(target: str) -> None:
    prepared = fxq.prepare(WritesThenConvolves().eval(), X, recipe=target, verify=True)
    skipped = find_state(prepared).record.skipped("b")  # type: ignore[union-attr]
    assert skipped[0].text == "'a' is overwritten in place by 'setitem', which a quantizer would miss"
    fxq.calibrate(prepared, [X], progress=False)
    prepared.get_submodule("a").requires_grad_(False)
    with torch.no_grad():
        found = prepared(X)
        float_model = prepared.get_submodule("b")
        expected = nn.functional.conv2d(torch.full((1, 4, 1, 1), 5.0), float_model.weight, float_model.bias)  # type: ignore[arg-type]
    # The written row is constant; 8-bit weights are off by half a step of 127 each, and so is an output quantizer.
    torch.testing.assert_close(found[:1, :, :1, :1], expected, rtol=0, atol=0.05)


def test_what_was_computed_for_a_write_that_nobody_sees_goes_with_it() -> None:
    def body(x: Tensor) -> Tensor:
        y = x.relu()
        z = y.flatten(1).mul(2)
        y += y.exp().neg()  # after the view was read
        return z

    assert_rewrites(
        [RemoveInplace()],
        model=Runs(body).eval(),
        inputs=X,
        after="""
            x = input
            mul = mul(x, 1)
            relu = .relu(mul)
            flatten = .flatten(relu, 1)
            mul_1 = .mul(flatten, 2)
            return mul_1
        """,
    )
