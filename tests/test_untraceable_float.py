"""``prepare(untraceable="float")``: the smallest module that does not trace stays whole, and is named."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.graph.shape_tracer import ShapeTracer

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x


class ThroughNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * 2)


class Picks(nn.Module):
    """Its layer runs for the largest values only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[: max(1, int(x.max()))] if x.max() > 100 else self.layer(x)


class AsksForTruth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if (x.shape[0] > 0) is True else x


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(8, 8), nn.Sequential(nn.ReLU(), inner), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.first(x)))


def around(inner: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return Around(inner).eval()


INNER = {
    "control flow": Gate,
    "assigned buffer": Counts,
    "numpy": ThroughNumpy,
    "a layer inside": Picks,
    "another graph": AsksForTruth,
}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())
@pytest.mark.parametrize("qat", [False, True], ids=["ptq", "qat"])
def test_the_smallest_module_stays_whole_and_the_rest_is_quantized(inner: Any, qat: bool) -> None:
    model = around(inner())
    with pytest.warns(UserWarning, match=r"kept whole in float.*'inner\.1'") as told:
        prepared = fxq.prepare(model, X, qat=qat, frontend="symbolic", untraceable="float")
    assert told[-1].filename == __file__
    fxq.calibrate(prepared, [X, -X], progress=False)
    converted = fxq.convert(prepared)
    explanation = fxq.explain(converted)
    assert "inner.1" in explanation["inner.1"].path
    assert 'kept whole in float (untraceable="float")' in explanation["inner.1"].reason
    assert explanation.coverage.quantized == ("first", "last")
    assert explanation.coverage.in_float == (("inner.1.layer",) if inner is Picks else ())
    for x in (X, -X):  # both branches
        assert torch.nn.functional.mse_loss(converted(x), model(x)) < 0.01 * model(x).var()


def test_two_of_them_stay_whole() -> None:
    model = nn.Sequential(Gate(), nn.Linear(8, 8), ThroughNumpy(), nn.Linear(8, 4)).eval()
    with pytest.warns(UserWarning, match=r"'0': cannot trace.*'2': cannot trace"):
        prepared = fxq.prepare(model, X, untraceable="float")
    assert fxq.explain(prepared).coverage.quantized == ("1", "3")


@pytest.mark.parametrize("inner", [Gate, Counts, Picks], ids=["control flow", "assigned buffer", "a layer inside"])
def test_many_of_them_are_found_in_one_go(inner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []

    def count(self: ShapeTracer, *args: Any) -> Any:
        traced.append(self)
        return original(self, *args)

    original = ShapeTracer.trace
    monkeypatch.setattr(ShapeTracer, "trace", count)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Sequential(inner())) for _ in range(6)]).eval()
    with pytest.warns(UserWarning, match=r"'0\.1\.0': .*'5\.1\.0': "):
        prepared = fxq.prepare(model, X, frontend="symbolic", untraceable="float")
    assert fxq.explain(prepared).coverage.quantized == tuple(f"{index}.0" for index in range(6))
    assert len(traced) == 3  # the first attempt, the search, and around what was found


def test_what_fails_because_of_a_part_is_kept_for_it() -> None:
    class Reads(nn.Module):
        """Takes from its part what is not known when that is kept whole."""

        def __init__(self) -> None:
            super().__init__()
            self.part, self.layer = ThroughNumpy(), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.part(x).shape[0] if self.part(x).shape[0] > 2 else x

    with pytest.warns(UserWarning, match=r"for it does not trace: 'inner\.1': "):
        prepared = fxq.prepare(around(Reads()), X, frontend="symbolic", untraceable="float")
    assert fxq.explain(prepared).coverage.quantized == ("first", "last")


def test_a_leaf_that_is_in_the_way_takes_its_parent_along() -> None:
    class OwnCall(nn.Linear):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x.abs())

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = OwnCall(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.own(x)

    model = around(Block())
    with pytest.warns(UserWarning, match=r"kept whole in float, for it does not trace: 'inner\.1': "):
        prepared = fxq.prepare(
            model, X, fxq.Recipe(leaf_modules=("OwnCall",)), frontend="symbolic", untraceable="float"
        )
    assert fxq.explain(prepared).coverage.quantized == ("first", "last")


def test_a_root_that_does_not_trace_is_told_of_islands() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            return self.head(x) if x.sum() > 0 else x

    with pytest.raises(fxq.TraceError, match=r"it is the model itself: .*if x\.sum\(\) > 0.*") as info:
        fxq.prepare(Root().eval(), X, untraceable="float")
    assert info.value.path == ""
    assert 'untraceable="islands" keeps the Python of the model and quantizes what traces of body, head' in str(
        info.value
    )


def test_the_error_says_where_and_names_the_cures() -> None:
    with pytest.raises(fxq.TraceError) as info:
        fxq.prepare(around(Picks()), X)
    assert info.value.path == "inner.1"
    assert info.value.reason.startswith("cannot trace module 'inner.1' (Picks), ")
    for cure in (
        'recipe.replace(leaf_modules=("inner.1",))',
        'untraceable="float"',
        "untraceable=\"islands\" keeps the Python of 'inner.1' and quantizes what traces of first, last, inner.1.layer",
    ):
        assert cure in str(info.value)


def test_a_graph_that_no_module_explains_is_refused() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * 2 if (x.shape[0] > 0) is True else x

    with pytest.raises(fxq.TraceError, match=r"such as `x is True`"):
        fxq.prepare(Root().eval(), X, untraceable="float")


def test_quantize_takes_it() -> None:
    with pytest.warns(UserWarning, match="kept whole in float"):
        converted = fxq.quantize(around(Gate()), [X, -X], untraceable="float", progress=False)
    assert fxq.explain(converted).coverage.quantized == ("first", "last")


def test_another_word_is_refused() -> None:
    with pytest.raises(fxq.InputError, match=r"untraceable is one of 'error', 'float', 'islands', got 'floats'"):
        fxq.prepare(around(Gate()), X, untraceable="floats")  # type: ignore[arg-type]
