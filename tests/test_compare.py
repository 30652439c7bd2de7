"""fxq.compare: local and accumulated error of each layer, against a slow calculation with hooks and torch alone."""

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small import images, residual, snapshot
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.compare.figures import Figures, Sums
from fxq.stage import Stage
from fxq.state import require_state, set_state

BATCHES = [images(6, seed=3), images(5, seed=4)]


def calibrated(model: nn.Module, recipe: Any = "tensorrt") -> GraphModule:
    gm = fxq.prepare(model, images(2), recipe)
    fxq.calibrate(gm, [images(16)])
    return gm


def decibel(expected: Tensor, found: Tensor) -> float:
    expected, found = expected.detach(), found.detach()
    return float(10 * torch.log10(expected.square().sum() / (expected - found).square().sum()))


def fake(x: Tensor, quantizer: fxq.TensorQuantizer) -> Tensor:
    """Symmetric int8 by hand, per tensor or per output channel."""
    step = quantizer.amax / 127
    return (x / step).round().clamp(-128, 127) * step


@pytest.fixture
def model() -> nn.Module:
    return residual()


@pytest.mark.parametrize("finish", [lambda gm: gm, fxq.convert], ids=["prepared", "converted"])
def test_figures_are_those_of_a_slow_calculation(
    model: nn.Module, finish: Callable[[GraphModule], GraphModule]
) -> None:
    gm = calibrated(model)
    found = fxq.compare(model, finish(gm), BATCHES)
    x = torch.cat(BATCHES)
    with torch.no_grad():
        hidden = model.bn(model.conv1(x)).relu()
        summed = model.conv2(hidden) + hidden
        features = summed.relu().mean((2, 3))
        q_hidden = fake(hidden, gm.conv2_input_quantizer)
        weight = fake(gm.conv2.weight, gm.conv2.weight_quantizer)
        local = nn.functional.conv2d(q_hidden, weight, gm.conv2.bias, padding=1)
        wrong = gm.conv1(fake(x, gm.conv1_input_quantizer))  # its weight quantizer is on
        wrong = gm.conv2(fake(wrong.relu(), gm.conv2_input_quantizer))
    conv2 = found["conv2"]
    assert conv2.kind == "conv"
    # Sums in another order: a relative error of 1e-6 of the noise.
    assert conv2.local.sqnr_db == pytest.approx(decibel(model.conv2(hidden), local), abs=1e-3)
    assert conv2.local.mse == pytest.approx(float((model.conv2(hidden) - local).detach().square().mean()), rel=1e-3)
    assert conv2.accumulated.sqnr_db == pytest.approx(decibel(model.conv2(hidden), wrong), abs=1e-3)
    assert conv2.weight.sqnr_db == pytest.approx(decibel(model.conv2.weight, weight), abs=1e-3)
    cosine = nn.functional.cosine_similarity(model.conv2(hidden).detach().flatten(), wrong.flatten(), 0)
    assert conv2.accumulated.cosine == pytest.approx(float(cosine), abs=1e-6)
    # The residual add's own error is that of its other input, the convolution's side is never stored.
    assert found["add"].local.sqnr_db == pytest.approx(decibel(summed, model.conv2(hidden) + q_hidden), abs=1e-3)
    assert found["fc"].local.sqnr_db == pytest.approx(
        decibel(model.fc(features), gm.fc(gm.fc_input_quantizer(features))), abs=1e-3
    )
    with torch.no_grad():
        expected, result = model(x), torch.cat([gm(batch) for batch in BATCHES])
    assert found.outputs["output"].sqnr_db == pytest.approx(decibel(expected, result), abs=1e-2)
    assert [layer.path for layer in found] == ["conv1", "conv2", "add", "fc"]
    assert found.samples == 11
    assert found.notes == ()


@pytest.mark.parametrize("recipe", ["onnxruntime", "openvino", "weight_only", "weight_only_int4"])
def test_prepared_and_converted_say_the_same(model: nn.Module, recipe: str) -> None:
    gm = fxq.prepare(model, images(2), recipe)
    if recipe in ("onnxruntime", "openvino"):
        fxq.calibrate(gm, [images(16)])
    one, two = fxq.compare(model, gm, BATCHES), fxq.compare(model, fxq.convert(gm), BATCHES)
    assert [layer.path for layer in one] == [layer.path for layer in two]
    for first, second in zip(one, two, strict=True):
        # A value on the border between two codes may fall on either side, and fc has but 110 of them.
        assert second.local.sqnr_db == pytest.approx(first.local.sqnr_db, abs=1)
        assert second.accumulated.sqnr_db == pytest.approx(first.accumulated.sqnr_db, abs=1)


@pytest.mark.parametrize(
    ("name", "activation"),
    [("shift_activations", nn.ReLU()), ("equalize_channels", nn.GELU())],
    ids=["shift", "equalize"],
)
def test_modules_that_calibration_put_in_are_on_the_float_side_of_a_converted_model(
    name: str, activation: nn.Module, tmp_path: Path
) -> None:
    """A shifted activation in place of another, and a multiplication before a quantizer: weights make up for them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), activation, nn.Linear(16, 8)).eval()
    with torch.no_grad():
        net[0].weight[0] *= 60
        net[2].weight[:, 0] /= 60
    data = torch.randn(64, 8)
    gm = fxq.prepare(net, data[:2], fxq.recipe("tensorrt").with_pass(name))
    fxq.calibrate(gm, data.split(16))
    changes = require_state(gm, Stage.PREPARED, "").changes
    assert bool(changes.replaced) is (name == "shift_activations")
    assert bool(changes.inserted) is (name == "equalize_channels")
    converted = fxq.convert(gm)
    fxq.save(converted, tmp_path / "model.fxq")
    one = fxq.compare(net, gm, [data])
    for other in (converted, fxq.load(tmp_path / "model.fxq", net)):
        two = fxq.compare(net, other, [data])
        assert two.notes == ()
        assert two.outputs["output"].sqnr_db == pytest.approx(one.outputs["output"].sqnr_db, abs=1e-2)
        assert [layer.path for layer in two] == [layer.path for layer in one]
        for first, second in zip(one, two, strict=True):
            # A value on the border between two codes may fall on either side.
            assert second.local.sqnr_db == pytest.approx(first.local.sqnr_db, abs=1)
    set_state(converted, dataclasses.replace(require_state(converted, Stage.LOWERED, ""), source=None))
    with pytest.raises(fxq.InputError, match=r"passes of calibration put modules into .*compare the prepared model"):
        fxq.compare(net, converted, [data])


def test_the_worst_layers_are_rules_of_a_recipe(model: nn.Module) -> None:
    comparison = fxq.compare(model, calibrated(model), BATCHES)
    worst = comparison.worst(2)
    assert worst == sorted(comparison, key=lambda layer: layer.local.sqnr_db)[:2]
    recipe = fxq.recipe("tensorrt").with_rules(*((layer.path, None) for layer in worst))
    again = fxq.compare(model, calibrated(model, recipe), BATCHES)
    assert not {layer.path for layer in worst} & {layer.path for layer in again}


@pytest.mark.parametrize("recipe", ["tensorrt", "onnxruntime"])
def test_every_path_is_a_rule(model: nn.Module, recipe: str) -> None:
    comparison = fxq.compare(model, calibrated(model, recipe), BATCHES)
    rules = fxq.recipe(recipe).with_rules(*((layer.path, None) for layer in comparison))
    with pytest.warns(UserWarning, match="nothing was quantized"):
        fxq.prepare(model, images(2), rules)


def test_a_layer_that_is_called_twice_is_one_row() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x).relu())

    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(16, 8)
    gm = fxq.prepare(model, x[:2])
    fxq.calibrate(gm, [x])
    (row,) = fxq.compare(model, gm, [x])
    assert row.path == "fc"
    with torch.no_grad():
        first = model.fc(x)
        second = model.fc(first.relu())
        errors = [first - gm.fc(gm.fc_input_quantizer(x)), second - gm.fc(gm.fc_input_quantizer_1(first.relu()))]
    signal = sum(float(one.square().sum()) for one in (first, second))
    noise = sum(float(one.square().sum()) for one in errors)
    assert row.local.sqnr_db == pytest.approx(10 * math.log10(signal / noise), abs=1e-3)


def test_corrected_biases_do_not_change_the_float_side(model: nn.Module) -> None:
    gm = fxq.prepare(model, images(2), fxq.recipe("tensorrt").with_pass("correct_bias"))
    fxq.calibrate(gm, fxq.Data([images(16)], held_out=0))
    with torch.no_grad():
        assert not torch.equal(gm.fc.bias, model.fc.bias)  # it was corrected
        hidden = model.bn(model.conv1(torch.cat(BATCHES))).relu()
        features = (model.conv2(hidden) + hidden).relu().mean((2, 3))
        expected, local = model.fc(features), gm.fc(gm.fc_input_quantizer(features))
    for quantized in (gm, fxq.convert(gm)):
        found = fxq.compare(model, quantized, BATCHES)
        assert found["fc"].local.sqnr_db == pytest.approx(decibel(expected, local), abs=1e-2)
        assert found.notes == ()


def test_a_trained_model_is_compared_with_itself_in_float_and_says_so(model: nn.Module) -> None:
    gm = calibrated(model)
    with torch.no_grad():
        gm.fc.weight.mul_(1.5)
    comparison = fxq.compare(model, gm, BATCHES)
    assert "the model was trained, given other weights or rewritten since" in comparison.notes[0]
    assert comparison.outputs["output"].sqnr_db > 15  # against the old weights it would be 9.5: 20 log10(1.5 / 0.5)
    converted = fxq.convert(gm)
    (note,) = fxq.compare(model, converted, BATCHES).notes
    assert note.startswith("the model was trained, or given other weights, since it was prepared: how far that took it")
    with torch.no_grad():
        model.fc.weight.mul_(1.5)  # the model as it was trained, which the note cannot know
    assert fxq.compare(model, converted, BATCHES).outputs["output"].sqnr_db > 15


def test_nothing_is_changed(model: nn.Module) -> None:
    gm = calibrated(model)
    before, model_before = snapshot(gm), snapshot(model)
    fxq.compare(model, gm, BATCHES)
    fxq.compare(model, fxq.convert(gm), BATCHES)
    assert snapshot(gm) == before
    assert snapshot(model) == model_before


def test_values_written_in_place_reach_neither_side() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.q = nn.Linear(4, 4), nn.Linear(4, 4), fxq.TensorQuantizer()

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            y[:, :2] = self.q(x[:, :2])
            return self.two(y)

    torch.manual_seed(0)
    model, x = Writes().eval(), torch.randn(8, 4)
    gm = fxq.prepare(model, x[:2])
    fxq.calibrate(gm, [x.clone()])
    comparison = fxq.compare(model, gm, [x])
    with torch.no_grad():
        y = torch.cat([x[:, :2], model.one(x)[:, 2:]], 1)
        assert comparison.outputs["output"].sqnr_db == pytest.approx(decibel(model.two(y), gm(x)), abs=1e-3)
        local = gm.one(gm.one_input_quantizer(x))
        assert comparison["one"].local.sqnr_db == pytest.approx(decibel(model.one(x), local), abs=1e-3)


def test_batches_may_differ_in_shape_and_be_empty(model: nn.Module) -> None:
    batches = [images(3), images(0), torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))]
    assert fxq.compare(model, calibrated(model), batches).samples == 5


def test_nan_in_the_float_model_is_said(model: nn.Module) -> None:
    notes = fxq.compare(model, calibrated(model), [images(3), torch.full_like(images(3), torch.nan)]).notes
    assert len(notes) == 1
    assert "NaN in the float model, at 'conv1', 'conv2', 'add', 'fc', 'output', counts for nothing" in notes[0]


def test_what_has_no_figure_is_said() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.dead = nn.Linear(8, 4), nn.Linear(8, 4, bias=False)
            nn.init.zeros_(self.dead.weight)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            scores = self.fc(x)
            return {"scores": scores, "dead": self.dead(x), "top": scores.argmax(1), "never": scores * math.inf}

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(16, 8)
    gm = fxq.prepare(model, x[:2], "onnxruntime")
    fxq.calibrate(gm, [x])
    found = fxq.compare(model, gm, [x])
    assert list(found.outputs) == ["scores", "dead"]
    assert found.notes == (
        "no SQNR, but an MSE, where the float model is zero throughout: 'dead'",
        "no figures where the float model holds no finite floating-point number: 'top', 'never'",
    )
    assert "dead 0 in float, MSE 0" in found.table()


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda m: (m, m, BATCHES), fxq.StageError, "compare takes the result of fxq.prepare or fxq.convert second"),
        (
            lambda m: (m, fxq.prepare(m), BATCHES),
            fxq.CalibrationError,
            "compare needs ranges, and 3 quantizers have none",
        ),
        (lambda m: (m, calibrated(m), []), fxq.CalibrationError, "there was no batch"),
        (lambda m: (m, calibrated(m), [torch.zeros(2, 3, 8, 8)]), fxq.InputError, "batch 0.*does not fit the model"),
        (lambda m: (nn.Flatten().eval(), calibrated(m), BATCHES), fxq.InputError, "float_model .Flatten. returns"),
        (
            lambda m: (nn.Flatten().eval(), fxq.convert(calibrated(m)), BATCHES),
            fxq.InputError,
            "float_model .Flatten. returns",
        ),
    ],
    ids=["float", "uncalibrated", "no-batch", "misfit", "other-model", "other-model-converted"],
)
def test_what_cannot_be_compared_is_refused(
    model: nn.Module, make: Callable[[nn.Module], Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        fxq.compare(*make(model))


def test_another_model_of_the_same_form_is_noticed(model: nn.Module) -> None:
    other = residual()
    for parameter in other.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    converted = fxq.convert(calibrated(model))
    assert any("give the model that was prepared" in note for note in fxq.compare(other, converted, BATCHES).notes)
    assert not fxq.compare(model, converted, BATCHES).notes


def test_a_plot_is_written_and_its_library_is_named_where_it_is_missing(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = fxq.compare(model, calibrated(model), BATCHES)
    comparison.plot(tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    for name, match in (("layers.xyz", "the suffix says the format"), ("no/layers.png", "does not exist")):
        with pytest.raises(fxq.ExportError, match=f"cannot write .*{match}"):
            comparison.plot(tmp_path / name)
    assert [one.name for one in tmp_path.iterdir()] == ["layers.png"]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(fxq.MissingExtraError, match=r"pip install 'fxq\[plot\]'"):
        comparison.plot(tmp_path / "none.png")


def test_the_table_has_a_row_for_each_layer(model: nn.Module) -> None:
    table = fxq.compare(model, calibrated(model), BATCHES).table()
    assert "4 layers on 11 samples; outputs: output " in table
    for path in ("conv1", "conv2", "add", "fc"):
        assert f"│ {path}" in table


def test_sums_leave_infinities_of_the_reference_out_and_count_those_of_the_other() -> None:
    sums = Sums()
    sums.add(torch.tensor([3.0, -math.inf]), torch.tensor([4.0, 0.0]))
    assert sums.figures == Figures(10 * math.log10(9), 1.0, 1.0)
    sums.add(torch.tensor([1.0]), torch.tensor([math.nan]))
    assert sums.figures is not None
    assert sums.figures.sqnr_db == -math.inf
    assert Sums().figures is None
