"""``prepare(untraceable="islands")``: the parts that trace of a model that does not."""

import copy
import warnings
from typing import Any

import pytest
import torch
from island_models import Detector, Gated, images, made
from torch import Tensor, fx, nn

import fxq
from fxq.nn import TensorQuantizer

UNUSED = pytest.mark.filterwarnings("ignore:'predictor.unused' never runs:UserWarning")
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
BATCHES = [(images(seed),) for seed in range(4)]
ISLANDS = {"backbone", "rpn.head", "box_head", "predictor.boxes"}


def prepared_detector(**options: Any) -> Any:
    return fxq.prepare(made(Detector), (images(),), untraceable="islands", **options)


def same(a: Any, b: Any) -> bool:
    return all(torch.allclose(x, y, atol=1e-5) for x, y in zip(a[0].values(), b[0].values(), strict=True))


def without_quantizers(prepared: nn.Module) -> nn.Module:
    for module in prepared.modules():
        if isinstance(module, TensorQuantizer):
            module.disable()
    return prepared


@UNUSED
def test_the_largest_parts_that_trace_are_prepared() -> None:
    prepared = prepared_detector()
    quantized = fxq.explain(prepared).coverage.quantized
    assert set(quantized) == {
        "backbone.stem.0", "backbone.down.0", "rpn.head.0", "rpn.head.2", "box_head.0", "box_head.2",
        "predictor.boxes",
    }  # fmt: skip
    assert isinstance(prepared, torch.fx.GraphModule)
    parts = [module for module in prepared.model.modules() if isinstance(module, torch.fx.GraphModule)]
    assert len(parts) == len(ISLANDS)


@UNUSED
def test_in_float_the_whole_computes_what_the_model_does() -> None:
    model = made(Detector)
    before = copy.deepcopy(model.state_dict())
    prepared = without_quantizers(fxq.prepare(model, (images(),), untraceable="islands"))
    for sizes in ((16, 16), (24, 24, 24)):
        assert same(prepared(images(3, sizes)), model(images(3, sizes)))
        assert same(prepared(images=images(3, sizes), targets=None), model(images(3, sizes)))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.detach().sum()) > 1e9 else x


def test_parts_of_a_graph_of_the_users_own_are_islands() -> None:
    """As those of onnx2torch, which has a module for each operation."""
    parts = {"Gemm/0": nn.Linear(8, 4), "Where/1": Decides()}
    graph = fx.Graph()
    value = graph.placeholder("x")
    for name in parts:
        value = graph.call_module(name, (value,))
    graph.output(value)
    prepared = fxq.prepare(fx.GraphModule(parts, graph).eval(), X, untraceable="islands")
    assert set(fxq.explain(prepared).coverage.quantized) == {"Gemm/0"}


def test_a_part_that_never_runs_is_named() -> None:
    with pytest.warns(UserWarning, match=r"'predictor\.unused' never runs on the example inputs: it stays in float"):
        prepared = prepared_detector()
    explanation = fxq.explain(prepared)
    assert explanation.coverage.in_float == ("predictor.unused",)
    assert "never runs on the example inputs" in explanation["predictor.unused"].reason


@UNUSED
def test_a_part_that_gets_nothing_is_named() -> None:
    with pytest.warns(UserWarning, match=r"'mask_head' never runs on the example inputs with anything in it"):
        prepared = fxq.prepare(made(Detector, True), (images(),), untraceable="islands")
    fxq.calibrate(prepared, BATCHES, progress=False)
    assert "mask_head" in fxq.explain(fxq.convert(prepared)).coverage.in_float


@UNUSED
def test_a_detector_is_calibrated_converted_and_explained() -> None:
    model = made(Detector)
    prepared = fxq.prepare(model, (images(),), untraceable="islands")
    report = fxq.calibrate(prepared, [*BATCHES, (images(9, (24, 24, 24)),)], progress=False)
    assert report.batches == 5
    converted = fxq.convert(prepared)
    assert len(converted(images(1))[0]["boxes"])
    explanation = fxq.explain(converted)
    assert len(explanation.coverage.quantized) == 7
    assert explanation["rpn.head.0"].is_quantized
    assert explanation["backbone.stem.0"].quantized[0].range != "not calibrated"
    assert explanation.notes[0].startswith("4 islands: backbone, box_head, predictor.boxes, rpn.head. ")
    assert "4 islands: backbone" in str(explanation)
    for part in (module for module in converted.model.modules() if isinstance(module, torch.fx.GraphModule)):
        quality = fxq.explain(part).quality
        assert quality is not None
        assert quality.against == "the original model"
        assert quality.sqnr_db > 20


@UNUSED
def test_detections_that_differ_are_not_compared() -> None:
    prepared = prepared_detector()
    fxq.calibrate(prepared, BATCHES, progress=False)
    converted = fxq.convert(prepared)
    expected, found = made(Detector)(images(0)), converted(images(0))
    explanation = fxq.explain(converted)
    is_alike = torch.equal(expected[0]["labels"], found[0]["labels"])
    assert (explanation.quality is None) == any("not compared" in note for note in explanation.notes)
    assert is_alike or explanation.quality is None


def test_a_dense_output_is_compared_with_the_model() -> None:
    model = made(Gated)
    prepared = fxq.prepare(model, X, untraceable="islands")
    fxq.calibrate(prepared, [X, -X], progress=False)
    quality = fxq.explain(fxq.convert(prepared)).quality
    assert quality is not None
    assert quality.against == "the original model"
    assert 20 < quality.sqnr_db < 80


def spoil(part: nn.Module) -> None:
    for module in part.modules():
        if isinstance(module, TensorQuantizer) and module.has_range and module.amax.numel() == 1:
            module.reset_amax()
            module.amax = 1e-3


def test_a_bad_result_is_told() -> None:
    model = made(Gated)
    prepared = fxq.prepare(model, X, untraceable="islands")
    fxq.calibrate(prepared, [X], progress=False)
    spoil(prepared.model.last)
    with pytest.raises(
        fxq.AccuracyError, match=r"the converted model is far from.* on 6 samples.*Most is lost in 'last'"
    ):
        fxq.convert(prepared, strict=True)
    with pytest.warns(UserWarning, match="the converted model is far from") as told:
        fxq.convert(prepared)
    assert told[0].filename == __file__


@UNUSED
def test_a_bad_island_is_named() -> None:
    model = made(Detector)
    prepared = fxq.prepare(model, (images(),), untraceable="islands")
    fxq.calibrate(prepared, BATCHES, progress=False)
    spoil(prepared.model.box_head)
    with pytest.raises(fxq.AccuracyError, match=r"the island 'box_head' is far from the original model"):
        fxq.convert(prepared, strict=True)


@UNUSED
def test_ranges_are_fitted_again_and_state_dicts_load() -> None:
    prepared = prepared_detector()
    fxq.calibrate(prepared, BATCHES, progress=False)
    fxq.fit_ranges(prepared, method="percentile", percentile=99.0)
    other = prepared_detector()
    other.load_state_dict(prepared.state_dict())
    assert same(other(images(5)), prepared(images(5)))
    again = copy.deepcopy(prepared)
    assert same(again(images(5)), prepared(images(5)))
    fxq.convert(again)


def test_passes_that_improve_run_island_by_island() -> None:
    weights = fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0))  # so that the gain is clear
    recipe = fxq.recipe("tensorrt").replace(default=weights).with_pass("correct_bias", only_certain=False)
    model = made(Gated)
    prepared = fxq.prepare(model, X, recipe, untraceable="islands")
    before = copy.deepcopy(prepared.state_dict())
    report = fxq.calibrate(prepared, [X + index / 8 for index in range(16)], progress=False)
    assert [step.name for step in report.steps] == [
        "observe_ranges", "fit_ranges", "correct_bias @ first", "correct_bias @ last",
    ]  # fmt: skip
    assert any("first: measured on" in note for note in report.notes)
    changed = {name for name, value in before.items() if not torch.equal(value, prepared.state_dict()[name])}
    assert any(name.endswith("bias") for name in changed)
    fxq.calibrate(prepared, [X + index for index in range(16)], progress=False)  # starts anew
    assert fxq.explain(fxq.convert(prepared)).quality.against == "the original model"  # type: ignore[union-attr]


@UNUSED
def test_an_island_that_no_batch_reaches_is_named() -> None:
    class Sometimes(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(x) if x.sum() > 0 else self.first(self.last(x))[:, :4]

    model = made(Sometimes)
    model.last = nn.Linear(8, 8)
    prepared = fxq.prepare(model, -X.abs(), untraceable="islands")
    with pytest.warns(UserWarning, match=r"no batch reached 'first': its quantizers have no range"):
        fxq.calibrate(prepared, [X.abs()], progress=False)
    with pytest.raises(fxq.CalibrationError, match="no range"):
        fxq.convert(prepared)


RULES = {
    "a layer": (("backbone.down.*", None), {"backbone.down.0"}),
    "an island": (("backbone", None), {"backbone.stem.0", "backbone.down.0"}),
    "around an island": (("rpn*", None), {"rpn.head.0", "rpn.head.2"}),
    "a type": ((nn.Linear, None), {"box_head.0", "box_head.2", "predictor.boxes"}),
    "a type around an island": ((nn.ModuleDict, None), {"predictor.boxes"}),
}


@UNUSED
@pytest.mark.parametrize(("rule", "kept"), RULES.values(), ids=RULES.keys())
def test_rules_name_modules_of_the_whole_model(rule: Any, kept: set[str]) -> None:
    prepared = prepared_detector(recipe=fxq.recipe("tensorrt").with_rules(rule))
    assert set(fxq.explain(prepared).coverage.in_float) == kept | {"predictor.unused"}


@UNUSED
def test_rules_and_leaves_that_match_nothing_are_refused() -> None:
    with pytest.raises(fxq.RecipeError, match=r"rule \('backbnoe.*did you mean 'backbone"):
        prepared_detector(recipe=fxq.recipe("tensorrt").with_rules(("backbnoe.stem", None)))
    with pytest.raises(fxq.RecipeError, match="leaf_modules names 'Nope'"):
        prepared_detector(recipe=fxq.Recipe(leaf_modules=("Nope",)))


@UNUSED
@pytest.mark.parametrize("leaf", ["backbone.down", "box_head"])
def test_a_leaf_stays_in_float(leaf: str) -> None:
    explanation = fxq.explain(prepared_detector(recipe=fxq.Recipe(leaf_modules=(leaf,))))
    assert all(path.startswith((leaf, "predictor.unused")) for path in explanation.coverage.in_float)
    assert any(path.startswith(leaf) for path in explanation.coverage.in_float)


class ReadsMore(Gated):
    """Reads more of its parts than their call."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        match self.what:
            case "a weight":
                x = x + self.last[0].weight.mean()
            case "a type":
                x = x if isinstance(self.last, nn.Sequential) else -x
            case "a method":
                x = x * len(self.last)
            case "an item":
                x = self.last[0](x)
        return super().forward(x)


@pytest.mark.parametrize("what", ["a weight", "a type", "a method", "an item"])
def test_a_part_of_which_more_is_read_than_its_call_is_entered(what: str) -> None:
    model = made(ReadsMore, what)
    prepared = without_quantizers(fxq.prepare(model, X, untraceable="islands"))
    assert torch.allclose(prepared(X), model(X), atol=1e-5)
    assert not isinstance(prepared.model.last, torch.fx.GraphModule)
    assert isinstance(prepared.model.first, torch.fx.GraphModule)


def test_one_module_in_two_places_is_one_island() -> None:
    model = made(Gated)
    model.again = model.last
    prepared = fxq.prepare(model, X, untraceable="islands")
    assert prepared.model.again is prepared.model.last


@pytest.mark.parametrize("is_tied", [True, False])
def test_training_moves_what_islands_share_apart_and_says_so(is_tied: bool) -> None:
    model = made(Gated)
    if is_tied:
        model.last[0].weight = model.first.weight
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fxq.prepare(model, X, qat=True, untraceable="islands")
    assert any("'first.weight' is 'last.0.weight'" in str(one.message) for one in told) == is_tied


@UNUSED
@pytest.mark.filterwarnings("ignore:the converted model is far")  # ranges are those of the untrained model
def test_a_detector_is_trained_as_before() -> None:
    prepared = prepared_detector(qat=True)
    fxq.calibrate(prepared, BATCHES, progress=False)
    prepared.train()
    targets = [torch.ones(4), torch.ones(4)]
    optimizer = torch.optim.Adam(prepared.parameters(), 0.02)
    losses = []
    for _ in range(12):
        loss = prepared(images(), targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    fxq.convert(prepared.eval())


def test_in_training_other_methods_of_a_part_stay() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

        def compute_loss(self, x: Tensor) -> Tensor:
            return x.square().mean()

    class Learner(Gated):
        def __init__(self) -> None:
            super().__init__()
            self.first = Head()

        def forward(self, x: Tensor) -> Tensor:
            return self.first.compute_loss(self.first(x)) if self.training else super().forward(x)

    prepared = fxq.prepare(made(Learner), X, qat=True, untraceable="islands")
    fxq.calibrate(prepared, [X], progress=False)
    prepared.train()(X).backward()
    assert set(fxq.explain(prepared).coverage.quantized) >= {"first.layer"}


def test_a_model_that_traces_has_no_islands() -> None:
    prepared = fxq.prepare(nn.Sequential(nn.Linear(8, 4)).eval(), X, untraceable="islands")
    assert fxq.explain(prepared).coverage.quantized == ("0",)
    assert not fxq.explain(prepared).notes


def test_example_inputs_are_asked_for() -> None:
    with pytest.raises(fxq.InputError, match=r"give prepare\(\) example_inputs.*cannot trace"):
        fxq.prepare(made(Gated), untraceable="islands")


def test_a_model_without_such_parts_is_refused() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(
        fxq.TraceError, match=r"no part of the model can be quantized as an island: cannot trace the model"
    ):
        fxq.prepare(Root().eval(), X, untraceable="islands")


def test_layers_that_take_several_inputs_are_islands() -> None:
    class Attends(Gated):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.lstm = nn.LSTM(8, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.attention(x[None], x[None], x[None], need_weights=False)
            z, _ = self.lstm(y)
            return super().forward(z[0])

    model = made(Attends)
    converted = fxq.quantize(model, None, "dynamic", X, untraceable="islands")
    explanation = fxq.explain(converted)
    assert set(explanation.coverage.quantized) == {"attention", "lstm", "first", "last.0", "last.2"}
    assert explanation.quality is not None
    assert explanation.quality.sqnr_db > 20


def test_torchscript_stays_as_it_is() -> None:
    class Scripted(Gated):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.jit.script(nn.Linear(8, 8))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that TorchScript is deprecated
        model = made(Scripted)
        prepared = fxq.prepare(model, X, untraceable="islands")
    assert fxq.explain(prepared).coverage.quantized == ("last.0", "last.2")


@pytest.mark.parametrize("where", ["root", "part"])
def test_forward_hooks_stay(where: str) -> None:
    model = made(Gated)
    (model if where == "root" else model.first).register_forward_hook(lambda module, args, output: output * 2)
    prepared = without_quantizers(fxq.prepare(model, X, untraceable="islands"))
    assert torch.allclose(prepared(X), model(X), atol=1e-5)


def test_quantize_makes_islands() -> None:
    converted = fxq.quantize(made(Gated), [X, -X], untraceable="islands", progress=False)
    assert fxq.explain(converted).coverage.quantized == ("first", "last.0", "last.2")
