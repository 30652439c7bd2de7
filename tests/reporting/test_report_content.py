"""fxq.report: what it gathers is what the objects that it is made of say."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.calibration import needs_data
from fxq.reporting.tensors import ranges_of_converted
from fxq.runtimes import Latency
from fxq.verification.bench_report import BenchReport, BenchRow
from fxq.verification.finding import Finding

X = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((self.conv(x) + x).relu().mean((2, 3)).tanh())


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


def calibrated(model: nn.Module, recipe: str | fxq.Recipe = "tensorrt") -> torch.fx.GraphModule:
    prepared = fxq.prepare(model, X[:2], recipe)
    fxq.calibrate(prepared, [X], progress=False)
    return prepared


def edges_of(report: fxq.Report) -> dict[tuple[str, str], str | None]:
    return {(report.nodes[one.source].path, report.nodes[one.target].path): one.quantizer for one in report.edges}


def test_the_graph_has_quantized_and_float_edges(model: nn.Module) -> None:
    found = edges_of(fxq.report(calibrated(model)))
    assert found == {
        ("x", "stem"): "stem_input_quantizer",
        ("stem", "relu"): None,
        ("relu", "conv"): "conv_input_quantizer",
        ("relu", "add"): "conv_input_quantizer",
        ("conv", "add"): None,
        ("add", "relu_1"): None,
        ("relu_1", "mean"): None,
        ("mean", "tanh"): None,
        ("tanh", "head"): "head_input_quantizer",
        ("head", "output"): None,
    }


def test_a_converted_model_has_the_graph_of_the_prepared_one(model: nn.Module) -> None:
    for recipe in ("tensorrt", "onnxruntime"):
        prepared = calibrated(model, recipe)
        assert edges_of(fxq.report(fxq.convert(prepared))) == edges_of(fxq.report(prepared))


def test_a_module_that_quantizes_its_input_itself_reads_a_quantized_tensor() -> None:
    net = nn.Sequential(fxq.nn.QuantLinear(4, 4), nn.Tanh()).eval()
    prepared = fxq.prepare(net, torch.ones(2, 4))
    fxq.calibrate(prepared, [torch.randn(8, 4, generator=torch.Generator().manual_seed(0))], progress=False)
    assert edges_of(fxq.report(prepared))["input", "0"] == "0._input_quantizer"


def test_nodes_say_what_explain_says(model: nn.Module) -> None:
    prepared = calibrated(model)
    explained = fxq.explain(prepared)
    nodes = {node.node: node for node in fxq.report(prepared).nodes}
    for one in explained.nodes:
        assert (nodes[one.node].quantized, nodes[one.node].reason) == (one.quantized, one.reason)
    assert nodes["conv"].shape == (2, 4, 8, 8)


def test_ranges_and_histograms_are_those_of_the_quantizers(model: nn.Module) -> None:
    prepared = calibrated(model)
    found = {one.quantizer: one for one in fxq.report(prepared).tensors}
    quantizer = prepared.get_submodule("stem_input_quantizer")
    stem = found["stem_input_quantizer"]
    assert (stem.low, stem.high) == tuple(float(bound) for bound in quantizer.range)
    assert sum(stem.histogram.counts) == X.numel()
    assert 32 < len(stem.histogram.counts) <= 64
    assert stem.histogram.is_absolute
    bound = stem.histogram.low + (stem.histogram.high - stem.histogram.low) * 16 / len(stem.histogram.counts)
    assert sum(stem.histogram.counts[:16]) == int((X.abs() < bound).sum())
    weight = found["conv._weight_quantizer"]
    tensor = prepared.get_submodule("conv").weight.detach()
    assert (weight.is_weight, weight.ranges, weight.high) == (True, 4, float(tensor.abs().max()))
    assert list(weight.histogram.counts) == torch.histc(tensor, 64).int().tolist()


def test_activations_of_a_converted_model_are_seen_with_batches(model: nn.Module) -> None:
    converted = fxq.convert(calibrated(model, "onnxruntime"))
    without = {one.quantizer: one for one in fxq.report(converted).tensors}
    assert without["stem_input_quantizer"].histogram is None
    found = {one.quantizer: one for one in fxq.report(converted, batches=[X[:4], X[4:]], progress=False).tensors}
    assert sum(found["stem_input_quantizer"].histogram.counts) == X.numel()
    assert found["stem_input_quantizer"].low == pytest.approx(float(X.min()), rel=0.05)
    assert {"conv._weight_quantizer", "conv._bias_quantizer"} <= found.keys()


def in_bits(bits: int) -> fxq.Recipe:
    weight = fxq.QuantDescriptor(num_bits=bits, axis=0)
    return fxq.recipe("tensorrt").with_rules(("*", fxq.QConfig(weight=weight)))


@pytest.mark.parametrize(
    ("recipe", "lowest_code", "highest_code"),
    [
        ("tensorrt", -128, 127),
        (in_bits(4), -8, 7),  # stored in eight bits
        ("tensorrt-fp8", -448, 448),
        ("weight_only_int4", -8, 7),
    ],
    ids=["int8", "int4-in-int8", "float8", "int4-in-blocks"],
)
def test_stored_weights_have_the_range_of_their_codes(
    recipe: str | fxq.Recipe, lowest_code: int, highest_code: int
) -> None:
    torch.manual_seed(0)
    prepared = fxq.prepare(nn.Sequential(nn.Linear(64, 8, bias=False)).eval(), torch.randn(4, 64), recipe)
    if needs_data(prepared):
        fxq.calibrate(prepared, [torch.randn(8, 64)], progress=False)
    fxq.calibrate_weights(prepared)
    (fitted,) = [one for one in fxq.report(prepared).tensors if one.is_weight]
    (stored,) = [one for one in fxq.report(fxq.convert(prepared)).tensors if one.is_weight]
    assert (stored.quantizer, stored.ranges) == (fitted.quantizer, fitted.ranges)
    # The scale is stored in float32.
    assert stored.high == pytest.approx(fitted.high, rel=1e-6)
    assert stored.low == pytest.approx(fitted.high * lowest_code / highest_code, rel=1e-6)


def test_packed_weights_tell_their_bits_themselves() -> None:
    torch.manual_seed(0)
    prepared = fxq.prepare(nn.Sequential(nn.Linear(64, 8)).eval(), torch.randn(4, 64), "weight_only_int4")
    converted = fxq.convert(prepared)
    (with_words,) = fxq.report(converted).tensors
    assert list(ranges_of_converted(converted, None, {})) == [with_words]


def test_stored_weights_of_an_affine_range_have_its_bounds_and_biases_have_none(model: nn.Module) -> None:
    affine = fxq.QConfig(weight=fxq.QuantDescriptor(symmetric=False, unsigned=True))
    prepared = calibrated(model, fxq.recipe("onnxruntime").with_rules(("stem", affine)))
    (fitted,) = [one for one in fxq.report(prepared).tensors if one.quantizer == "stem._weight_quantizer"]
    found = {one.quantizer: one for one in fxq.report(fxq.convert(prepared)).tensors}
    stored, bias = found["stem._weight_quantizer"], found["stem._bias_quantizer"]
    # The zero point is rounded: both ends move by less than a step.
    step = (fitted.high - fitted.low) / 255
    assert (stored.low, stored.high) == pytest.approx((fitted.low, fitted.high), abs=step)
    assert stored.low < -step < step < stored.high
    assert (bias.low, bias.high) == (None, None)


def test_a_fusion_that_costs_accuracy_is_in_the_notes(model: nn.Module, tmp_path: Path) -> None:
    prepared = calibrated(model)
    file = fxq.export_onnx(fxq.convert(prepared), tmp_path / "model.onnx")
    without = fxq.report(prepared, file=file).notes
    costly = dataclasses.replace(file, fusion="it is MatMulScaleFusion")
    fxq.report(prepared, tmp_path / "report.html", file=costly)
    assert "it is MatMulScaleFusion" in (tmp_path / "report.html").read_text()
    assert fxq.report(prepared, file=costly).notes == (*without, "it is MatMulScaleFusion")
    islands = dataclasses.replace(file, islands={"body": costly, "head": file})
    assert fxq.report(prepared, file=islands).notes == (*without, "body: it is MatMulScaleFusion")


def test_figures_are_those_of_compare_sensitivity_and_calibrate(model: nn.Module) -> None:
    prepared = fxq.prepare(model, X[:2], fxq.recipe("tensorrt").with_accuracy("fast"))
    steps = fxq.calibrate(prepared, [X], progress=False)
    found = json.loads(json.dumps(fxq.report(prepared, batches=[X], progress=False).to_dict()))
    compared = fxq.compare(model, prepared, [X], progress=False)
    assert [layer["path"] for layer in found["comparison"]["layers"]] == [layer.path for layer in compared]
    for layer, expected in zip(found["comparison"]["layers"], compared, strict=True):
        assert layer["local"]["sqnr_db"] == expected.local.sqnr_db
    few = fxq.Data([X], max_samples=16, held_out=0, progress=False)
    expected = fxq.sensitivity(prepared, few, progress=False)
    assert [one["value"] for one in found["sensitivity"]["groups"]] == [one.value for one in expected]
    assert [one["name"] for one in found["calibration"]["steps"]] == [step.name for step in steps.steps]
    assert [one["sqnr_after_db"] for one in found["calibration"]["steps"]] == [
        step.sqnr_after_db for step in steps.steps
    ]
    assert found["coverage"]["quantized"] == ["stem", "conv", "head"]
    assert found["sensitivity"]["float_value"] == "inf"


def test_measured_quality_is_that_of_explain(model: nn.Module) -> None:
    prepared = calibrated(model)
    expected = fxq.explain(fxq.convert(prepared)).quality
    found = fxq.report(prepared).quality
    assert found.sqnr_db == pytest.approx(expected.sqnr_db, abs=0.5)  # convert rounds sums in another order
    assert (found.against, found.samples) == (expected.against, expected.samples)
    assert fxq.report(fxq.convert(prepared)).quality == expected


def test_sizes_are_those_of_the_weights(model: nn.Module, tmp_path: Path) -> None:
    prepared = calibrated(model)
    values = sum(tensor.numel() for tensor in model.parameters())
    weights = sum(tensor.numel() for name, tensor in model.named_parameters() if name.endswith("weight"))
    size = fxq.report(prepared).size
    assert (size.float_bytes, size.quantized_bytes, size.file_bytes) == (4 * values, 4 * values - 3 * weights, None)
    file = fxq.export_onnx(fxq.convert(prepared), tmp_path / "model.onnx")
    found = fxq.report(prepared, file=file)
    assert found.size.file_bytes == (tmp_path / "model.onnx").stat().st_size
    assert found.quality == file.quality


def test_what_was_found_elsewhere_is_passed_on(model: nn.Module) -> None:
    finding = Finding(
        rule="residual-quantizer", node="add", path="add", severity="warning", fix="quantize it", what="w", cost="c"
    )
    latency = {"ONNX Runtime, int8": Latency((1.0, 2.0, 4.0))}
    found = fxq.report(calibrated(model), findings=[finding], latency=latency).to_dict()
    assert found["findings"] == [dataclasses.asdict(finding)]
    assert found["latency"] == {"ONNX Runtime, int8": {"median_ms": 2.0, "spread_ms": 1.5, "rounds": 3}}


def test_a_bench_report_is_a_latency(model: nn.Module) -> None:
    bench = BenchReport((BenchRow("onnxruntime", "files/model.onnx", Latency((1.0, 2.0, 4.0))),))
    found = fxq.report(calibrated(model), latency=bench).latency
    assert {name: one.median_ms for name, one in found.items()} == {"model.onnx in onnxruntime": 2.0}


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"file": "model.onnx"}, r"file= takes what fxq.export_onnx\(...\) returned, got str"),
        ({"comparison": 3}, "comparison= takes what fxq.compare.*got int"),
        ({"latency": 3.5}, "latency= takes what fxq.bench.*got float"),
        ({"latency": {"mine": 3.5}}, "latency= takes what fxq.bench.*a dict of what was timed to a Latency"),
        ({"findings": "none"}, "findings= takes what fxq.verify.*got str"),
        ({"findings": None}, "findings= takes what fxq.verify.*got NoneType"),
    ],
    ids=["path", "number", "time", "times", "text", "none"],
)
def test_what_was_not_found_elsewhere_is_refused(model: nn.Module, given: dict[str, Any], match: str) -> None:
    with pytest.raises(fxq.InputError, match=match):
        fxq.report(calibrated(model), **given)


def test_a_model_that_is_not_calibrated_shows_its_placement(model: nn.Module) -> None:
    found = fxq.report(fxq.prepare(model, X[:2]))
    assert found.quality is None
    assert any("not calibrated: 3 quantizers have no range" in note for note in found.notes)
    assert all(one.low is None for one in found.tensors if not one.is_weight)
    with pytest.raises(fxq.CalibrationError, match="needs ranges"):
        fxq.report(fxq.prepare(model, X[:2]), batches=[X])


def test_a_float_model_that_is_gone_is_missed_where_it_is_needed() -> None:
    torch.manual_seed(0)
    prepared = calibrated(Residual().eval())
    converted = fxq.convert(prepared)
    assert fxq.report(prepared, batches=[X], progress=False).comparison is not None
    found = fxq.report(converted, batches=[X], progress=False)
    assert found.comparison is None
    assert any("give float_model=" in note for note in found.notes)
    torch.manual_seed(0)
    again = fxq.report(converted, batches=[X], float_model=Residual().eval(), progress=False)
    assert len(again.comparison) == 4


def test_batches_may_be_a_generator(model: nn.Module) -> None:
    found = fxq.report(calibrated(model), batches=(part for part in X.split(4)), progress=False)
    assert found.comparison.samples == 12
    assert found.sensitivity.samples == 12


def test_recipes_without_data_are_reported(model: nn.Module) -> None:
    for recipe in ("dynamic", "weight_only"):
        found = fxq.report(fxq.prepare(model, X[:2], recipe), batches=[X], progress=False)
        assert all(one.low is None for one in found.tensors if not one.is_weight)
        assert found.comparison is not None
        assert math.isfinite(found.quality.sqnr_db)


def test_other_models_are_refused(model: nn.Module) -> None:
    with pytest.raises(fxq.StageError, match=r"report takes the result of fxq\.prepare or fxq\.convert, got Residual"):
        fxq.report(model)  # type: ignore[arg-type]


class Detector(nn.Module):
    """Its own Python runs around two parts that trace."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        found = self.body(x)
        return self.head(found if float(found.sum()) > 0 else -found)


def test_islands_are_drawn_together_and_say_that_layers_are_not_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    prepared = fxq.prepare(Detector().eval(), X[:2], untraceable="islands")
    fxq.calibrate(prepared, [X], progress=False)
    found = fxq.report(prepared, tmp_path / "report.html", [X], progress=False)
    assert [node.path for node in found.nodes if node.kind == "conv"] == ["body.0", "head.0"]
    quantizers = {edge.quantizer for edge in found.edges if edge.quantizer}
    assert quantizers <= {one.quantizer for one in found.tensors}
    assert len(quantizers) == 2
    assert {one.quantizer for node in found.nodes for one in node.quantized} == {one.quantizer for one in found.tensors}
    assert found.comparison is None
    assert any("layers of a model with islands are not measured" in note for note in found.notes)
    assert fxq.report(fxq.convert(prepared), tmp_path / "report.json").nodes == found.nodes


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        prepared = fxq.prepare(Residual().eval())
    with pytest.raises(fxq.StageError, match="report computes with the model's weights"):
        fxq.report(prepared)


def test_a_batch_that_the_model_writes_into_stays_as_it_is() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x[:, 0] = 0
            return self.head(x)

    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    net = Writes().eval()
    converted = fxq.quantize(net, [kept.clone()], progress=False)
    fxq.report(converted, batches=[x], float_model=net, progress=False)
    assert torch.equal(x, kept)


def test_printed_it_is_one_line(model: nn.Module) -> None:
    found = fxq.report(calibrated(model))
    assert str(found).startswith("report on Residual, calibrated by tensorrt: 3 of 3 convolutions and linear layers")
    assert len(repr(found)) < 400


def test_a_trained_model_is_reported() -> None:
    torch.manual_seed(0)
    net = Residual().eval()
    prepared = fxq.prepare(net, X[:2], qat=True)
    fxq.calibrate(prepared, [X], progress=False)
    prepared.train()
    prepared(X).square().sum().backward()
    torch.optim.SGD(prepared.parameters(), 0.01).step()
    found = fxq.report(prepared, batches=[X], progress=False)
    assert found.quality.against == "the model with its quantizers off"
    assert any("float_model's own outputs are" in note for note in found.comparison.notes)
    assert prepared.training


def test_a_model_of_which_nothing_is_quantized_is_reported(tmp_path: Path) -> None:
    found = fxq.report(fxq.prepare(nn.Tanh().eval(), X), tmp_path / "report.html", [X], progress=False)
    assert (len(found.nodes), found.tensors) == (3, ())
    assert {edge.quantizer for edge in found.edges} == {None}


def test_a_loaded_model_without_samples_is_measured_on_the_batches(model: nn.Module, tmp_path: Path) -> None:
    prepared = calibrated(model)
    fxq.save(prepared, tmp_path / "model.fxq")
    loaded = fxq.load(tmp_path / "model.fxq", model)
    assert fxq.report(loaded).quality is None
    found = fxq.report(loaded, batches=[X], progress=False)
    assert found.quality is not None
    assert found.comparison is not None
    # The same twelve samples; the traced float model stands for the original, which differs by rounding.
    assert found.quality.outputs[0].sqnr_db == pytest.approx(found.comparison.outputs["output"].sqnr_db, abs=0.1)
