"""calibrate as a stage: passes with data, measured, undone where they hurt, all or nothing."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from support.small import images, residual
from torch import Tensor
from torch.fx import GraphModule

import fxq
from fxq.graph import activation_quantizers, is_weighted
from fxq.state import find_state
from fxq_passes.correct_bias import CorrectBias

DATA = images(32)
# 4 bits, so that rounding moves the mean of a layer visibly.
TRT = fxq.recipe("tensorrt").replace(default=fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0)))
CORRECTED = TRT.with_pass("correct_bias")


@fxq.register_pass("test_shift_biases")
@dataclass(frozen=True)
class ShiftBiases(fxq.Pass):
    """Adds a number to all biases, and claims that it helps."""

    stage = fxq.Stage.CALIBRATED
    tolerance = fxq.ANY
    improves = True
    by: float = 1.0

    def run(self, rw: fxq.Rewriter) -> None:
        for node in rw.nodes(is_weighted):
            rw.set_bias(str(node.target), rw.module(node).bias.detach() + self.by, "shifted")


@fxq.register_pass("test_fails_half_way")
@dataclass(frozen=True)
class FailsHalfWay(fxq.Pass):
    """Changes weights, a bias, ranges, a calibrator and a module, and fails."""

    stage = fxq.Stage.CALIBRATED
    tolerance = fxq.ANY
    error: str = "RuntimeError"

    def run(self, rw: fxq.Rewriter) -> None:
        layers = rw.nodes(is_weighted)
        for node, _ in rw.run_both(layers):
            rw.set_weight(str(node.target), rw.module(node).weight.detach() * 2, "doubled")
            rw.set_bias(str(node.target), rw.module(node).bias.detach() + 1, "shifted")
            rw.gm.get_submodule("conv1_input_quantizer").amax = 99.0
            rw.gm.get_submodule("fc_input_quantizer").use_calibrator("entropy")
            rw.replace_module("conv1", torch.nn.Identity(), "why not")
            raise {"RuntimeError": RuntimeError, "KeyboardInterrupt": KeyboardInterrupt}[self.error]("stop")


@fxq.register_pass("test_improves_and_fails")
@dataclass(frozen=True)
class ImprovesAndFails(FailsHalfWay):
    """The same, and claims that it helps."""

    improves = True


@fxq.register_pass("test_streams_and_sets")
@dataclass(frozen=True)
class StreamsAndSets(fxq.Pass):
    """Declares that it only streams, and does not."""

    stage = fxq.Stage.CALIBRATED
    tolerance = fxq.ANY
    streams: ClassVar[bool] = True
    asks: bool = False

    def run(self, rw: fxq.Rewriter) -> None:
        if self.asks:
            list(rw.run_both(rw.nodes(is_weighted)))
        rw.set_bias("fc", torch.zeros(10), "why not")


@fxq.register_pass("test_counts_samples")
@dataclass(frozen=True)
class CountsSamples(fxq.Pass):
    """Shows the batches to a statistic of its own."""

    stage = fxq.Stage.CALIBRATED
    streams: ClassVar[bool] = True
    seen: ClassVar[list[int]] = []

    def run(self, rw: fxq.Rewriter) -> None:
        hook = rw.gm.register_forward_pre_hook(lambda module, inputs: self.seen.append(len(inputs[0])))
        rw.data.feed(rw.gm)
        hook.remove()


@fxq.register_pass("test_looks_at_samples")
@dataclass(frozen=True)
class LooksAtSamples(fxq.Pass):
    """Goes over the kept samples before anything else has read the batches."""

    stage = fxq.Stage.CALIBRATED
    seen: ClassVar[list[int]] = []

    def run(self, rw: fxq.Rewriter) -> None:
        self.seen[:] = [len(args[0]) for args, _ in rw.data]


def prepared(recipe: fxq.Recipe = TRT) -> GraphModule:
    return fxq.prepare(residual(), images(2), recipe)


def tensors(gm: GraphModule) -> dict[str, Any]:
    return {path: tensor.tolist() for path, tensor in gm.state_dict().items()}


def test_the_default_passes_are_reported_unmeasured() -> None:
    gm = prepared()
    report = fxq.calibrate(gm, DATA.split(8))
    assert [(step.name, step.sqnr_before_db, step.sqnr_after_db, step.kept) for step in report.steps] == [
        ("observe_ranges", None, None, True),
        ("fit_ranges", None, None, True),
    ]
    assert report.notes == ()
    assert find_state(gm).stage is fxq.Stage.CALIBRATED  # type: ignore[union-attr]


def test_a_pass_that_helps_is_kept_and_measured_on_samples_held_out() -> None:
    report = fxq.calibrate(prepared(CORRECTED), DATA.split(8))
    step = report.steps[-1]
    assert step.name == "correct_bias"
    assert step.kept
    assert step.sqnr_before_db is not None
    assert step.sqnr_after_db is not None
    assert step.sqnr_after_db > step.sqnr_before_db
    assert report.notes == ("measured on 4 samples that no pass saw, of 32",)
    lines = str(report).splitlines()
    assert "SQNR before" in lines[2]
    assert any(f"{step.sqnr_after_db:.1f} dB" in line and "kept" in line for line in lines)
    assert report.notes[0] in lines[-1]


def test_a_pass_that_hurts_is_undone() -> None:
    plain, shifted = prepared(TRT.with_pass("correct_bias")), prepared(CORRECTED.with_pass("test_shift_biases"))
    expected = fxq.calibrate(plain, DATA.split(8)).steps[-1].sqnr_after_db
    step = fxq.calibrate(shifted, DATA.split(8)).steps[-1]
    assert not step.kept
    assert step.sqnr_before_db == expected
    assert tensors(shifted) == tensors(plain)
    record = find_state(shifted).record  # type: ignore[union-attr]
    assert record.of("test_shift_biases", "edit") == []
    assert record.of("test_shift_biases", "skip")[0].text.startswith("undone: ")
    assert "undone" in str(fxq.calibrate(shifted, DATA.split(8)))
    fxq.convert(shifted)  # without a word that a pass did not run: it did


@fxq.register_pass("test_widens_ranges")
@dataclass(frozen=True)
class WidensRanges(fxq.Pass):
    """Makes the ranges of all activations much too wide."""

    stage = fxq.Stage.CALIBRATED
    tolerance = fxq.ANY
    factor: ClassVar[float] = 16.0

    def run(self, rw: fxq.Rewriter) -> None:
        for quantizer in activation_quantizers(rw.gm).values():
            quantizer.amax = quantizer.amax * self.factor


@fxq.register_pass("test_narrows_but_shifts")
@dataclass(frozen=True)
class NarrowsButShifts(WidensRanges):
    """Takes that back, and adds a number to all biases, which a correction takes back."""

    improves = True
    keeps_ranges = True
    factor = 1 / 16.0

    def run(self, rw: fxq.Rewriter) -> None:
        super().run(rw)
        for node in rw.nodes(is_weighted):
            rw.set_bias(str(node.target), rw.module(node).bias.detach() + 0.3, "shifted")


def test_a_pass_that_looks_worse_is_kept_where_it_is_better_with_the_correction_behind_it() -> None:
    alone = TRT.with_pass("test_widens_ranges").with_pass("test_narrows_but_shifts")
    corrected = prepared(alone.with_pass("correct_bias"))
    assert not fxq.calibrate(prepared(alone), DATA.split(8)).steps[-1].kept
    report = fxq.calibrate(corrected, DATA.split(8))
    step, correction = report.steps[-2:]
    assert step.sqnr_after_db < step.sqnr_before_db - 3  # type: ignore[operator]
    assert step.kept
    assert correction.sqnr_before_db == step.sqnr_after_db  # what judged it is taken back
    assert correction.sqnr_after_db > step.sqnr_before_db + 3  # type: ignore[operator]
    assert any("test_narrows_but_shifts is kept for what it brings in the end: " in note for note in report.notes)


@fxq.register_pass("test_counts_corrections")
@dataclass(frozen=True)
class CountsCorrections(CorrectBias):
    """Corrects, and counts how often."""

    runs: ClassVar[list[int]] = []

    def run(self, rw: fxq.Rewriter) -> None:
        self.runs.append(len(rw.data.kept(rw.gm)))
        super().run(rw)


@pytest.mark.parametrize("contested", [("narrows_but_shifts", "shift_biases"), ("shift_biases", "narrows_but_shifts")])
def test_how_good_a_correction_leaves_the_model_is_found_out_once(contested: tuple[str, str]) -> None:
    recipe, options = TRT.with_pass("test_widens_ranges"), {"shift_biases": {"by": 30.0}}
    for name in contested:
        recipe = recipe.with_pass(f"test_{name}", **options.get(name, {}))
    CountsCorrections.runs.clear()
    report = fxq.calibrate(prepared(recipe.with_pass("test_counts_corrections")), DATA.split(8))
    assert {step.name: step.kept for step in report.steps[-3:-1]} == {
        "test_narrows_but_shifts": True,
        "test_shift_biases": False,
    }
    # Before and behind the first pass, behind the second one, and for good.
    assert len(CountsCorrections.runs) == 4


@fxq.register_pass("test_undoes_all")
@dataclass(frozen=True)
class UndoesAll(WidensRanges):
    """Makes the ranges wider than ever, and is no pass that is judged."""

    factor = 1000.0


def test_what_was_kept_is_not_noted_where_all_is_undone() -> None:
    recipe = TRT.with_pass("test_widens_ranges").with_pass("test_narrows_but_shifts").with_pass("correct_bias")
    report = fxq.calibrate(prepared(recipe.with_pass("test_undoes_all")), DATA.split(8))
    assert any(note.startswith("all undone") for note in report.notes)
    assert not any("is kept for what it brings" in note for note in report.notes)


def test_a_pass_that_is_worse_with_the_correction_too_is_undone() -> None:
    gm, without = (
        prepared(CORRECTED.with_pass("test_shift_biases", before="correct_bias", by=30.0)),
        prepared(CORRECTED),
    )
    report, expected = fxq.calibrate(gm, DATA.split(8)), fxq.calibrate(without, DATA.split(8))
    assert [step.kept for step in report.steps[-2:]] == [False, True]
    assert report.steps[-1].sqnr_after_db == expected.steps[-1].sqnr_after_db
    assert tensors(gm) == tensors(without)
    record = find_state(gm).record  # type: ignore[union-attr]
    assert "; with correct_bias behind it " in record.of("test_shift_biases", "skip")[0].text


def test_a_few_samples_are_of_all_batches_alike() -> None:
    data = fxq.Data([torch.full((size, 2), float(size)) for size in (8, 2, 1, 8, 5)], held_out=0)
    data.begin(keep=True, hold_out=False)
    gm = fxq.prepare(torch.nn.Linear(2, 2).eval(), torch.zeros(1, 2), TRT)
    every = data.kept(gm)
    with data.few(6):
        assert [batch.args[0].shape[0] for batch in data.kept(gm)] == [2, 1, 2, 1]
    assert data.kept(gm) is every
    with data.few(100):
        assert data.kept(gm) == every


@pytest.mark.parametrize(("count", "compared", "learned"), [(8, 8, True), (56, 16, True), (64, 8, False)])
def test_few_samples_held_out_are_compared_with_others_beside_them(count: int, compared: int, learned: bool) -> None:
    gm = prepared(CORRECTED)
    fxq.calibrate(gm, fxq.Data(images(count).split(8)))
    found = find_state(gm).compared  # type: ignore[union-attr]
    batches = [batch.args[0] for batch in found.inputs]  # type: ignore[union-attr]
    assert sum(map(len, batches)) == compared
    assert len(torch.cat(batches).flatten(1).unique(dim=0)) == compared
    assert found.were_learned is learned  # type: ignore[union-attr]


def test_a_gain_that_may_be_chance_is_undone() -> None:
    """It is 0.005 dB over the four samples held out, and some of them lose."""
    gm = prepared(TRT.with_pass("test_shift_biases", by=-0.001))
    before = {path: value for path, value in tensors(gm).items() if path.endswith("bias")}
    report = fxq.calibrate(gm, DATA.split(8))
    step = report.steps[-1]
    assert step.sqnr_after_db > step.sqnr_before_db  # type: ignore[operator]
    assert not step.kept
    assert {path: value for path, value in tensors(gm).items() if path.endswith("bias")} == before
    assert report.notes[-1].startswith("all undone, since what they gain together may be chance on so few samples: ")
    record = find_state(gm).record  # type: ignore[union-attr]
    assert [entry.text.partition(":")[0] for entry in record.of("test_shift_biases")] == ["undone"]
    fxq.convert(gm)


def test_the_sqnr_is_that_of_the_outputs_of_prepared_against_float() -> None:
    model, gm = residual(), prepared(CORRECTED)
    data = DATA.clone()
    data[24:] *= 0.5  # within the ranges that the others give: taking them in changes nothing
    step = fxq.calibrate(gm, fxq.Data([data], held_out=0.25)).steps[-1]
    with torch.no_grad():
        wanted, found = model(data[24:]), gm(data[24:])
    sqnr = 10 * torch.log10(wanted.square().sum() / (wanted - found).square().sum())
    # The float model inside has its batch norm folded: float32 sums in another order.
    assert step.sqnr_after_db == pytest.approx(float(sqnr), abs=0.01)


class Scaled(torch.nn.Module):
    """Two outputs of layers alike, the second in other units."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.unit = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4), unit

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.one(x), self.two(x) * self.unit


def test_outputs_count_alike_whatever_their_units_are() -> None:
    data = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for unit in (1.0, 1000.0):
        gm = fxq.prepare(Scaled(unit).eval(), data[:2], TRT.with_pass("correct_bias"))
        found.append(fxq.calibrate(gm, data.split(16)).steps[-1])
    assert found[0].sqnr_after_db == pytest.approx(found[1].sqnr_after_db, abs=1e-3)  # float32 rounds
    assert found[0].sqnr_before_db == pytest.approx(found[1].sqnr_before_db, abs=1e-3)


@fxq.register_pass("test_looks_at_a_range")
@dataclass(frozen=True)
class LooksAtARange(fxq.Pass):
    """Writes down a range, and halves it."""

    stage = fxq.Stage.CALIBRATED
    tolerance = fxq.ANY
    seen: ClassVar[list[float]] = []

    def run(self, rw: fxq.Rewriter) -> None:
        quantizer = activation_quantizers(rw.gm)["conv1_input_quantizer"]
        self.seen.append(float(quantizer.amax))  # type: ignore[arg-type]
        quantizer.amax = quantizer.amax / 2  # type: ignore[operator]


def test_ranges_take_in_samples_held_out_where_no_pass_changed_anything() -> None:
    """As the plain recipe's, which has no need to hold any out; a range that a pass narrowed stays that share of it."""
    data = DATA.clone()
    data[28:] *= 100  # the eighth that is held out of one batch
    idle = TRT.with_pass("test_shift_biases", by=0.0)
    plain, gm = prepared(), prepared(idle)
    narrowed = prepared(idle.with_pass("test_looks_at_a_range", before="test_shift_biases"))
    reports = [fxq.calibrate(one, [data]) for one in (plain, gm, narrowed)]
    assert "measured on 4 samples that no pass saw, of 32; ranges took them in" in reports[1].notes
    assert LooksAtARange.seen == [float(DATA[:28].abs().max())]
    assert tensors(gm) == tensors(plain)
    found = activation_quantizers(narrowed)["conv1_input_quantizer"].amax
    assert float(found) == pytest.approx(float(data.abs().max()) / 2)  # type: ignore[arg-type]
    assert find_state(gm).compared.were_learned  # type: ignore[union-attr]


def test_fewer_samples_are_kept_where_tensors_are_large() -> None:
    """2 ** 23 values of a sample are 32 MiB: of sixteen samples 512."""

    class Large(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).mean(1).unsqueeze(1).expand(-1, 2**21, -1).amax(1)

    with torch.no_grad():
        gm = fxq.prepare(Large().eval(), torch.randn(1, 3, 4), TRT.with_pass("test_shift_biases"))
    report = fxq.calibrate(gm, torch.randn(40, 3, 4).split(8))
    assert report.notes[:2] == (
        "measured on 5 samples that no pass saw, of 40",
        "16 samples at most were kept to learn from, since the largest tensor of the model takes 32 MiB for each: "
        "fxq.Data(batches, max_samples=...) keeps more",
    )
    report = fxq.calibrate(gm, fxq.Data(torch.randn(40, 3, 4).split(8), max_samples=24))
    assert report.notes[0].startswith("measured on 3 samples")


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (lambda: DATA[:5], "5 samples are too few to hold any out (8 would do): correct_bias ran without"),
        (
            lambda: fxq.Data([DATA], max_samples=6),
            "the 6 samples of max_samples= are too few to hold any out (8 would do): correct_bias ran without",
        ),
        (
            lambda: fxq.Data([DATA], forward=lambda gm, batch: gm(batch)),
            "no batch could be held out, for they are few, and cannot be taken apart: give smaller ones: correct_bias",
        ),
        (lambda: fxq.Data([DATA], held_out=0), "no sample was held out (held_out=0): correct_bias ran without"),
    ],
    ids=["too few", "few are kept", "one whole batch", "none wanted"],
)
def test_without_samples_to_measure_on_the_report_says_so(data: Any, note: str) -> None:
    report = fxq.calibrate(prepared(CORRECTED), data())
    assert report.steps[-1].sqnr_after_db is None
    assert report.steps[-1].kept
    assert report.notes[0].startswith(note)


def test_a_second_calibration_starts_from_the_weights_of_prepare() -> None:
    once, twice = prepared(CORRECTED), prepared(CORRECTED)
    fxq.calibrate(once, DATA.split(8))
    fxq.calibrate(twice, (DATA * 0.5).split(8))
    fxq.calibrate(twice, DATA.split(8))
    assert tensors(twice) == tensors(once)
    assert len(find_state(twice).record.entries) == len(find_state(once).record.entries)  # type: ignore[union-attr]


def test_a_bias_that_calibration_created_is_gone_when_it_starts_anew() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 4, bias=False)).eval()
    x = torch.randn(32, 8)
    gm = fxq.prepare(model, x, CORRECTED)
    fxq.calibrate(gm, fxq.Data([x], held_out=0))
    first = gm.get_submodule("0").bias
    assert first is not None
    before = first.detach().clone()
    fxq.calibrate(gm, fxq.Data([x], held_out=0))
    assert torch.equal(gm.get_submodule("0").bias, before)


def test_a_calibration_after_training_starts_from_the_trained_weights() -> None:
    gm = prepared(CORRECTED)
    fxq.calibrate(gm, DATA.split(8))
    corrected = gm.conv2.bias.detach().clone()
    with torch.no_grad():
        gm.fc.weight += 0.01  # a step of training
    trained = gm.fc.weight.detach().clone()
    fxq.calibrate(gm, DATA.split(8))
    assert torch.equal(gm.fc.weight, trained)
    # conv2 is correct already: the second correction of the same error is none, not a second helping of it.
    assert float((gm.conv2.bias.detach() - corrected).abs().max()) < 1e-5


def test_a_calibrated_model_is_still_a_prepared_one() -> None:
    gm = prepared(CORRECTED)
    fxq.calibrate(gm, DATA.split(8))
    fxq.fit_ranges(gm, "percentile")
    converted = fxq.convert(gm)
    with pytest.raises(fxq.StageError, match="stage 'lowered'"):
        fxq.calibrate(converted, DATA.split(8))
    gm.train()
    gm(DATA[:2]).sum().backward()
    assert gm.conv1.bias.grad is not None


@pytest.mark.parametrize("error", ["RuntimeError", "KeyboardInterrupt"])
@pytest.mark.parametrize("is_first", [True, False], ids=["first calibration", "second calibration"])
def test_a_failure_leaves_everything_as_it_was(error: str, is_first: bool) -> None:
    gm = prepared(CORRECTED.with_pass("test_fails_half_way", error=error))
    if not is_first:
        # What a calibration that went well leaves: the same passes but the last.
        good = prepared(CORRECTED)
        fxq.calibrate(good, DATA.split(8))
        good.meta["fxq"] = replace(good.meta["fxq"], recipe=gm.meta["fxq"].recipe)
        gm = good
    gm.train()
    before, shown, modules = tensors(gm), str(gm), dict(gm.named_modules())
    parameters, state = dict(gm.named_parameters()), find_state(gm)
    with pytest.raises((fxq.PassError, KeyboardInterrupt), match="stop"):
        fxq.calibrate(gm, (DATA * 2).split(8))
    assert tensors(gm) == before
    assert str(gm) == shown
    assert dict(gm.named_modules()) == modules
    assert all(parameters[path] is parameter for path, parameter in gm.named_parameters())
    assert find_state(gm) is state
    assert gm.training
    with pytest.raises(fxq.CalibrationError, match="no quantizer has seen data"):
        fxq.fit_ranges(gm)


def test_an_improvement_that_nobody_asked_for_is_undone_where_it_fails() -> None:
    without, gm = prepared(CORRECTED), prepared(TRT.with_pass("test_improves_and_fails").with_pass("correct_bias"))
    fxq.calibrate(without, DATA.split(8), unjudged=False)
    with pytest.warns(UserWarning, match=r"test_improves_and_fails failed, and was undone: .*RuntimeError: stop"):
        report = fxq.calibrate(gm, DATA.split(8), unjudged=False)
    assert tensors(gm) == tensors(without)
    assert report.steps[-1].kept
    (failed,) = (step for step in report.steps if step.error)
    assert failed.verdict == "failed"
    assert any("test_improves_and_fails failed, and was undone: " in note for note in report.notes)
    entries = [entry for entry in find_state(gm).record.entries if entry.pass_name == failed.name]  # type: ignore[union-attr]
    assert [entry.action for entry in entries] == ["skip"]


@fxq.register_pass("test_corrects_and_fails")
@dataclass(frozen=True)
class CorrectsAndFails(FailsHalfWay):
    """The same, and claims that it makes up for others."""

    improves = True
    corrects = True


def test_a_corrector_that_fails_is_undone_behind_what_made_things_worse_too() -> None:
    gm = prepared(TRT.with_pass("test_shift_biases").with_pass("test_corrects_and_fails"))
    without = prepared(TRT)
    fxq.calibrate(without, DATA.split(8), unjudged=False)
    with pytest.warns(UserWarning, match="test_corrects_and_fails failed, and was undone"):
        report = fxq.calibrate(gm, DATA.split(8), unjudged=False)
    assert [step.verdict for step in report.steps[-2:]] == ["undone", "failed"]
    assert not any("behind it" in entry.text for entry in find_state(gm).record.entries)  # type: ignore[union-attr]
    assert tensors(gm) == tensors(without)


@fxq.register_pass("test_shifts_by_next_to_nothing")
@dataclass(frozen=True)
class ShiftsByNextToNothing(ShiftBiases):
    """What it gains or loses is chance."""

    by: float = -1e-3


def test_what_failed_is_still_told_where_all_else_is_undone_as_chance() -> None:
    gm = prepared(TRT.with_pass("test_improves_and_fails").with_pass("test_shifts_by_next_to_nothing"))
    with pytest.warns(UserWarning, match="test_improves_and_fails failed"):
        report = fxq.calibrate(gm, DATA.split(8), unjudged=False)
    assert any("may be chance" in note for note in report.notes)
    record = find_state(gm).record  # type: ignore[union-attr]
    assert "test_improves_and_fails" in record.passes
    assert any("undone: it failed" in entry.text for entry in record.entries)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxq.convert(gm)


def test_a_pass_that_learns_needs_data_and_says_so() -> None:
    recipe = fxq.recipe("weight_only").with_pass("correct_bias")
    gm = fxq.prepare(residual(), images(2), recipe)
    with pytest.raises(fxq.PassError, match=r"'correct_bias' needs data.*without_pass\('correct_bias'\)"):
        fxq.calibrate(gm)
    with pytest.raises(fxq.PassError, match="'correct_bias' needs data"):
        fxq.quantize(residual(), None, recipe, images(2))


def test_with_data_a_recipe_without_observers_runs_its_passes() -> None:
    recipe = fxq.recipe("dynamic").with_pass("correct_bias")
    gm = fxq.prepare(torch.nn.Sequential(torch.nn.Linear(8, 4)).eval(), torch.randn(2, 8), recipe)
    torch.manual_seed(0)
    report = fxq.calibrate(gm, [torch.randn(32, 8)])
    assert report.steps[-1].sqnr_after_db is not None


@pytest.mark.parametrize("asks", [True, False], ids=["run_both", "set_bias"])
def test_a_pass_that_declares_to_stream_is_held_to_it(asks: bool) -> None:
    gm = prepared(TRT.with_pass("test_streams_and_sets", asks=asks))
    with pytest.raises(fxq.PassError, match="'test_streams_and_sets' declares streams = True"):
        fxq.calibrate(gm, DATA.split(8))


def test_a_second_pass_that_streams_reads_the_batches_again_but_not_those_of_an_iterator() -> None:
    gm = prepared(TRT.with_pass("test_counts_samples"))
    CountsSamples.seen.clear()
    fxq.calibrate(gm, DATA.split(8))
    assert CountsSamples.seen == [8, 8, 8, 8]
    with pytest.raises(
        fxq.CalibrationError, match="an iterator was read by an earlier pass, and nothing of it was kept"
    ):
        fxq.calibrate(gm, iter(DATA.split(8)))


def test_samples_can_be_gone_over_before_anything_has_read_the_batches() -> None:
    recipe = fxq.recipe("dynamic").with_pass("test_looks_at_samples")
    gm = fxq.prepare(torch.nn.Sequential(torch.nn.Linear(8, 4)).eval(), torch.randn(2, 8), recipe)
    fxq.calibrate(gm, [torch.randn(8, 8), torch.randn(4, 8)])
    assert LooksAtSamples.seen == [8, 4]


def test_a_recipe_without_passes_for_its_observers_is_refused() -> None:
    gm = prepared(TRT.without_pass("observe_ranges").without_pass("fit_ranges"))
    with pytest.raises(
        fxq.CalibrationError, match=r"no pass of the recipe 'tensorrt' shows them any: add observe_rang"
    ):
        fxq.calibrate(gm, DATA.split(8))


def test_a_forward_inside_data_and_one_beside_it_are_one_too_many() -> None:
    with pytest.raises(fxq.InputError, match="holds a forward of its own"):
        fxq.calibrate(prepared(), fxq.Data([DATA]), forward=lambda model, batch: model(batch))


def test_a_generator_serves_passes_that_need_it_again() -> None:
    def loader() -> Iterator[Tensor]:
        yield from DATA.split(8)

    from_generator, from_list = prepared(CORRECTED), prepared(CORRECTED)
    fxq.calibrate(from_generator, loader())
    fxq.calibrate(from_list, DATA.split(8))
    assert tensors(from_generator) == tensors(from_list)
