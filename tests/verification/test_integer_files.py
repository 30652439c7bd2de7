"""Files that compute with integers from end to end are held to rules of their own: they have no pairs of quantizers."""

import warnings
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from torch import nn

import fxq
from fxq.registry import get_target
from fxq.verification.case import Case
from fxq.verification.onnx_file import OnnxFile
from fxq.verification.rules import INTEGER_FILE_RULES


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    x = torch.rand(4, 3, 6, 6)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    path = tmp_path_factory.mktemp("integer") / "integer.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few samples
        fxq.export_onnx(fxq.to_integer(fxq.quantize(model, [x], recipe="onnxruntime")), path)
    return path


def test_an_integer_file_breaks_no_rule(path: Path) -> None:
    found = fxq.verify(path, "onnxruntime")
    assert "MatMulInteger" in str(found.executed)
    assert (found.ok, found.findings) == (True, ())


def test_a_float_among_its_integers_is_found_by_the_rules_of_pairs(path: Path, tmp_path: Path) -> None:
    model = onnx.load(path)
    product = next(node for node in model.graph.node if node.op_type == "MatMulInteger")
    product.output[0] += "_codes"
    (at,) = [index for index, node in enumerate(model.graph.node) if node is product]
    for kind, to, source in ((1, "_float", "_codes"), (6, "", "_float")):
        name = product.output[0].removesuffix("_codes")
        at += 1
        model.graph.node.insert(at, helper.make_node("Cast", [name + source], [name + to], to=kind))
    onnx.save(model, tmp_path / "float.onnx")
    found = fxq.verify(tmp_path / "float.onnx", "onnxruntime")
    assert "codes-source" in {finding.rule for finding in found.findings}


def test_tensorrt_has_no_integer_operators(path: Path) -> None:
    case = Case(OnnxFile.read(path), get_target("tensorrt"))
    found = {(finding.rule, finding.severity) for rule in INTEGER_FILE_RULES for finding in rule(case)}
    assert ("operator", "error") in found
