"""A trained network on labelled data, from PyTorch to what ONNX Runtime makes of the file."""

from importlib.metadata import version
from pathlib import Path

import onnx
import pytest
import torch
from support.models import Digits
from torch.fx import GraphModule

import fxq
from fxq.export import ExportOptions
from fxq.export import export_onnx as export_graph
from fxq.runtimes import count_kinds, get_runtime

RECIPES = ("tensorrt", "onnxruntime", "openvino")
# Two of 400 digits: ONNX Runtime requantizes a fused kernel in its own rounding, and some digits lie between classes.
ACCURACY_TOLERANCE = 0.005


@pytest.fixture(scope="module", params=RECIPES)
def converted(request: pytest.FixtureRequest, digits: Digits) -> GraphModule:
    batches = digits.training_images[:128].split(32)
    return fxq.quantize(digits.model, batches, request.param, digits.test_images[:1], progress=False)


@pytest.fixture(scope="module")
def file(converted: GraphModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fxq.export_onnx(converted, tmp_path_factory.mktemp("digits") / "digits.onnx").path


def test_quantization_costs_no_accuracy(digits: Digits, converted: GraphModule) -> None:
    with torch.no_grad():
        expected = digits.accuracy(digits.model(digits.test_images))
        accuracy = digits.accuracy(converted(digits.test_images))
    assert expected > 0.9
    # One percent, 4 of 400 digits: what 8 bits have been seen to cost such a network.
    assert accuracy > expected - 0.01


def test_onnxruntime_is_as_accurate_as_the_converted_module(digits: Digits, converted: GraphModule, file: Path) -> None:
    with torch.no_grad():
        expected = converted(digits.test_images)
    (logits,) = get_runtime("onnxruntime").run(file, digits.test_images)
    assert abs(digits.accuracy(torch.tensor(logits)) - digits.accuracy(expected)) <= ACCURACY_TOLERANCE


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_batch_size_is_free(digits: Digits, converted: GraphModule, file: Path, batch: int) -> None:
    images = digits.test_images[:batch]
    (logits,) = get_runtime("onnxruntime").run(file, images)
    with torch.no_grad():
        expected = converted(images)
    assert logits.shape == (batch, 10)
    step = expected.abs().max() / 127
    # As in the export's own parity check: rounding may flip codes, and an output collects a few of them.
    assert (torch.tensor(logits) - expected).abs().mean() < step


def test_names_lead_back_to_the_modules(digits: Digits, file: Path) -> None:
    paths = {path for path, _ in digits.model.named_modules()}
    graph = onnx.load(file).graph
    weighted = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(weighted) == 13
    for node in weighted:
        path = node.name.rpartition("/")[0]
        assert path in paths
        assert node.input[1].startswith(f"{path}.weight")


def test_the_file_says_who_wrote_it_and_how(converted: GraphModule, file: Path, tmp_path: Path) -> None:
    model = onnx.load(file)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert model.producer_name == "fxq"
    assert metadata["fxq.version"] == version("fxq")
    written = tmp_path / "recipe.toml"
    written.write_text(metadata["fxq.recipe"])
    assert fxq.recipe(written).name in RECIPES


def test_weights_beyond_the_limit_lie_beside_the_file(digits: Digits, converted: GraphModule, tmp_path: Path) -> None:
    images = digits.test_images[:8]
    report = export_graph(converted, tmp_path / "big.onnx", images, ExportOptions(external_data_threshold=1_000_000))
    assert report.external_data == tmp_path / "big.onnx.data"
    assert report.path.stat().st_size < 1_000_000 < report.external_data.stat().st_size
    (logits,) = get_runtime("onnxruntime").run(report.path, images)
    with torch.no_grad():
        assert (torch.tensor(logits).argmax(1) == converted(images).argmax(1)).all()


def test_the_whole_network_runs_in_integers(digits: Digits, tmp_path: Path) -> None:
    images = digits.training_images[:64]
    converted = fxq.quantize(digits.model, [images], "onnxruntime", images[:1], progress=False)
    path = fxq.export_onnx(converted, tmp_path / "digits.onnx").path
    operators = count_kinds(get_runtime("onnxruntime").executed_ops(path))
    assert (operators["QLinearConv"], operators["QLinearAdd"], operators["QGemm"]) == (12, 4, 1)
    assert operators["Conv"] == operators["Add"] == operators["Relu"] == 0
