"""convert compares with the model that the user handed over, on calibration data, and says how close it is."""

import warnings
from typing import Any

import pytest
import torch
from support.small import images, residual
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.compare.outputs import Seen
from fxq.data import Data
from fxq.state import require_state

DATA = images(32)


class Coarse(nn.Module):
    """A layer whose input has one huge value in each sample: 8 bits leave nothing of the others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fine, self.fc = nn.Linear(16, 16), nn.Linear(16, 4, bias=False)
        with torch.no_grad():
            self.fine.weight[0] *= 1e4
            self.fc.weight[:, 0] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fine(x))  # type: ignore[no-any-return]


class Sized(nn.Module):
    """Takes another way for large images, which tracing on small ones burns out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).mean((2, 3))
        return y * 2 if x.shape[-1] > 8 else y


@fxq.register_pass("test_flip_the_last_bias")
class FlipTheLastBias(fxq.Pass):
    """Makes the model worse, which nobody measures."""

    stage = fxq.Stage.CALIBRATED
    tolerance = fxq.ANY

    def run(self, rw: fxq.Rewriter) -> None:
        rw.set_bias("fc", rw.gm.get_parameter("fc.bias").detach() * 0.45, "why not")


def calibrated(model: nn.Module, data: Any = None, **options: Any) -> GraphModule:
    prepared = fxq.prepare(model, DATA[:2], **options)
    fxq.calibrate(prepared, DATA.split(8) if data is None else data, progress=False)
    return prepared


def quality(converted: GraphModule) -> Any:
    found = fxq.explain(converted).quality
    assert found is not None
    return found


def expected_db(model: nn.Module, converted: GraphModule, inputs: Tensor) -> float:
    with torch.no_grad():
        want, have = model(inputs).double(), converted(inputs).double()
    return float(10 * torch.log10(want.square().sum() / (want - have).square().sum()))


def test_the_converted_model_is_compared_with_the_users_on_calibration_samples() -> None:
    model = residual()
    converted = fxq.convert(calibrated(model))
    found = quality(converted)
    shown = torch.cat([batch[:4] for batch in DATA.split(8)])
    assert (found.against, found.samples) == ("the original model", 16)
    assert found.sqnr_db == pytest.approx(expected_db(model, converted, shown), abs=0.01)
    with torch.no_grad():
        agree = (model(shown).argmax(1) == converted(shown).argmax(1)).double().mean()
    assert found.agreement == pytest.approx(float(agree))
    assert found.verdict == "good"


def test_samples_held_out_are_preferred() -> None:
    model = residual()
    prepared = calibrated(
        model, Data(DATA.split(8), held_out=0.25), recipe=fxq.recipe("tensorrt").with_pass("correct_bias")
    )
    converted = fxq.convert(prepared)
    reference = require_state(converted, fxq.Stage.LOWERED, "a test").reference
    assert reference is not None
    held_out = torch.cat([one.args[0] for one in reference.inputs])
    assert len(held_out) == 8
    assert quality(converted).sqnr_db == pytest.approx(expected_db(model, converted, held_out), abs=0.01)


@pytest.mark.filterwarnings("ignore:the original model's weights or buffers were changed")
@pytest.mark.parametrize("how", ["gone", "changed"])
def test_without_the_original_the_traced_graph_is_compared_with(how: str) -> None:
    model: nn.Module | None = residual()
    assert model is not None
    prepared = fxq.prepare(model, DATA[:2])
    if how == "gone":
        model = None
    else:
        with torch.no_grad():
            model.fc.weight.mul_(-1)  # type: ignore[operator, union-attr]
    fxq.calibrate(prepared, DATA.split(8), progress=False)
    found = quality(fxq.convert(prepared))
    assert found.against == "the traced float model"
    assert found.verdict == "good"


def test_without_data_the_example_inputs_are_compared_on() -> None:
    model = residual()
    converted = fxq.convert(fxq.prepare(model, DATA[:3], "dynamic"))
    assert quality(converted).samples == 3
    assert quality(converted).sqnr_db == pytest.approx(expected_db(model, converted, DATA[:3]), abs=0.01)


def test_without_any_inputs_nothing_is_claimed() -> None:
    converted = fxq.convert(fxq.prepare(residual(), recipe="dynamic"))
    assert fxq.explain(converted).quality is None


def test_what_calibration_corrects_is_held_against_the_original_weights() -> None:
    model, recipe = residual(), fxq.recipe("tensorrt").with_pass("test_flip_the_last_bias")
    prepared = calibrated(model, recipe=recipe)
    converted = fxq.convert(prepared)
    found = quality(converted)
    assert (found.against, found.verdict) == ("the original model", "suspicious")
    shown = torch.cat([batch[:4] for batch in DATA.split(8)])
    assert found.sqnr_db == pytest.approx(expected_db(model, converted, shown), abs=0.01)


def test_a_trained_model_is_compared_with_itself_in_float() -> None:
    prepared = calibrated(residual(), qat=True)
    with torch.no_grad():
        prepared.get_parameter("fc.weight").mul_(-1)
    found = quality(fxq.convert(prepared))
    assert found.against == "the model with its quantizers off"
    assert found.verdict == "good"


def test_keyword_batches_and_forward_are_compared_on_too() -> None:
    model = residual()
    for data in ([{"x": batch} for batch in DATA.split(8)], Data(DATA.split(8), forward=lambda gm, batch: gm(batch))):
        assert quality(fxq.convert(calibrated(model, data))).samples == 16


def test_a_bad_result_warns_and_names_the_layer_that_loses() -> None:
    prepared = fxq.prepare(Coarse().eval(), torch.randn(2, 16))
    fxq.calibrate(prepared, torch.randn(32, 16).split(8), progress=False)
    with pytest.warns(
        UserWarning, match="the converted model is far from the traced float model on 16 samples"
    ) as caught:
        fxq.convert(prepared)
    (warning,) = caught
    assert "'output' has" in str(warning.message)
    assert "Most is lost in 'fc'" in str(warning.message)
    assert "2 of 2 convolutions and linear layers in int8" in str(warning.message)
    assert warning.filename == __file__


def test_strict_makes_it_an_error_and_the_recipe_or_the_call_sets_the_bound() -> None:
    prepared = calibrated(residual())
    with pytest.raises(fxq.AccuracyError, match=r"the least asked for is 80 dB"):
        fxq.convert(prepared, min_sqnr_db=80, strict=True)
    picky = calibrated(residual(), recipe=fxq.recipe("tensorrt").replace(min_sqnr_db=70.0))
    with pytest.warns(UserWarning, match="the least asked for is 70 dB"):
        fxq.convert(picky)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxq.convert(picky, min_sqnr_db=3)
    with pytest.raises(fxq.AccuracyError):
        fxq.quantize(residual(), DATA.split(8), progress=False, min_sqnr_db=80, strict=True)


def test_a_graph_that_computes_something_else_on_the_data_is_refused() -> None:
    model = Sized().eval()
    prepared = fxq.prepare(model, DATA[:2])
    fxq.calibrate(prepared, [torch.randn(2, 1, 12, 12)], progress=False)
    with pytest.raises(
        fxq.TraceError, match=r"on calibration data the traced graph computes another 'output'.*Sized.*verify=True"
    ):
        fxq.convert(prepared)
    fxq.calibrate(prepared, [DATA], progress=False)
    assert quality(fxq.convert(prepared)).verdict == "good"


def test_a_model_that_amplifies_rounding_is_no_other_model() -> None:
    class Contrast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean((2, 3), keepdim=True)) * 1e4

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Contrast()).eval()
    data = 1 + 1e-4 * torch.randn(8, 3, 8, 8)
    prepared = fxq.prepare(model, data[:2])
    fxq.calibrate(prepared, [data], progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 8 bits keep nothing of it
        found = quality(fxq.convert(prepared))
    assert found.against == "the original model"


def test_the_users_model_is_not_kept_alive_or_changed() -> None:
    model = residual().train()
    hidden = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.warns(UserWarning, match="training mode"):
        prepared = calibrated(model)
    assert model.training
    assert all(torch.equal(tensor, hidden[name]) for name, tensor in model.state_dict().items())
    assert quality(fxq.convert(prepared)).against == "the original model"


def test_a_layer_left_in_float_is_in_the_coverage() -> None:
    prepared = fxq.prepare(residual(), DATA[:2], fxq.recipe("tensorrt").with_rules(("fc", None)))
    assert str(fxq.explain(prepared).coverage) == "2 of 3 convolutions and linear layers in int8; float: fc"


def test_layers_inside_an_opaque_module_are_in_float() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())).eval()
    prepared = fxq.prepare(model, DATA[:2], fxq.Recipe(leaf_modules=("1",)))
    assert fxq.explain(prepared).coverage.in_float == ("1.0",)


def test_nothing_quantized_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="nothing was quantized: with recipe 'tensorrt'"):
        fxq.prepare(nn.Sequential(nn.Softmax(1)).eval(), DATA[:2])


def test_few_samples_of_the_calibration_data_itself_are_called_weak_evidence() -> None:
    def evidence(data: Any, **options: Any) -> str:
        return str(fxq.explain(fxq.convert(calibrated(residual(), data, **options))).quality)

    weak = "on 2 samples of the calibration data itself, which says little about other data"
    assert evidence([DATA[:2]]).endswith(weak)
    assert evidence(None).endswith("on 16 samples")
    # With 4 bits the correction is a clear gain, and kept: ranges stay those of the samples that were not held out.
    weights = fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0))
    held_out = fxq.recipe("tensorrt").replace(default=weights).with_pass("correct_bias")
    assert "itself" not in evidence([DATA[:8], DATA[8:16]], recipe=held_out)


@pytest.mark.parametrize("batch", [DATA[:2], DATA[2:4]], ids=["the example inputs", "others"])
def test_what_was_compared_already_is_not_run_again_for_the_figures(batch: Tensor) -> None:
    converted = fxq.convert(calibrated(residual(), [batch]))
    state = require_state(converted, fxq.Stage.LOWERED, "a test")
    assert state.reference is not None
    assert state.explanation is not None
    assert torch.equal(state.reference.inputs[0].args[0], batch)
    assert state.explanation.quality == state.reference.quality(converted)


def test_other_inputs_are_told_apart() -> None:
    x = torch.tensor([[0.0, 1.0]])
    seen = Seen((x, 2, {"a": x}), [])
    assert seen.is_of((x.clone(), 2, {"a": x.clone()}))
    for other in ((x + 1, 2, {"a": x}), (x, 2.0, {"a": x}), (x.double(), 2, {"a": x}), (x, 2, {"b": x}), (x, 2, x)):
        assert not seen.is_of(other)
