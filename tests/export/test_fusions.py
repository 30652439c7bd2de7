"""Which of ONNX Runtime's optimizations makes a file worse is found by leaving them out, and named."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support.small import images, residual

import fxq
from fxq.compare.parity import compare
from fxq.compare.quality import OutputQuality, Quality
from fxq.export import fusions
from fxq.runtimes import count_kinds, get_runtime


@pytest.fixture(scope="module")
def converted() -> torch.fx.GraphModule:
    return fxq.quantize(residual(), [images(8)], "onnxruntime", progress=False)


@pytest.fixture(scope="module")
def path(converted: torch.fx.GraphModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "model.onnx"
    fxq.export_onnx(converted, path, check=False)
    return path


class Measure:
    """Worth 20 dB optimized, 25 as written and without the guilty one."""

    def __init__(self, guilty: str, written: float = 25.0) -> None:
        self.guilty, self.written, self.asked = guilty, written, list[str]()

    def __call__(self, without: Sequence[str] | None) -> Quality:
        self.asked.append("none" if without is None else ",".join(without))
        return worth(self.written if without is None or self.guilty in without else 20.0)


def worth(sqnr_db: float) -> Quality:
    return Quality((OutputQuality("mask", None, 1.0), OutputQuality("output", sqnr_db, None)), 8, "the original model")


def test_the_optimization_that_costs_accuracy_is_named_with_what_it_makes(path: Path) -> None:
    found = fusions.why_worse(path, worth(20), worth(25), Measure("QDQSelectorActionTransformer"))
    assert found.startswith("output 'output' has 20.0 dB against the float model with ONNX Runtime's optimizations, ")
    assert "and 25.0 as the file is written: it is QDQSelectorActionTransformer, which makes " in found
    assert "2 QLinearConv" in found
    assert found.endswith("disabled_optimizers=['QDQSelectorActionTransformer']) leaves it out")


def test_where_none_alone_explains_it_that_is_said(path: Path) -> None:
    measure = Measure("none of them")
    found = fusions.why_worse(path, worth(20), worth(25), measure)
    assert "no optimization alone explains it; graph_optimization_level = ORT_DISABLE_ALL" in found
    assert measure.asked == ["none", *fusions.OPTIMIZERS]


def test_what_is_as_good_as_the_module_costs_no_run(path: Path) -> None:
    measure = Measure("none of them")
    assert fusions.why_worse(path, worth(20), worth(20.3), measure) == ""
    assert measure.asked == []


@pytest.mark.parametrize("wanted", [146.2, math.inf])
def test_an_output_as_good_as_exact_loses_nothing(path: Path, wanted: float) -> None:
    measure = Measure("none of them")
    assert fusions.why_worse(path, worth(135), worth(wanted), measure) == ""
    assert measure.asked == []


def test_the_output_that_loses_most_is_told_of(path: Path) -> None:
    def of_two(logits: float) -> Quality:
        outputs = OutputQuality("hidden", 40.0 if logits > 20 else 39.0, None), OutputQuality("logits", logits, None)
        return Quality(outputs, 8, "the original model")

    found = fusions.why_worse(path, of_two(12.0), of_two(25.0), lambda without: of_two(25.0 if without != () else 12.0))
    assert found.startswith("output 'logits' has 12.0 dB against")


def test_what_is_as_bad_as_it_is_written_is_no_optimization(path: Path) -> None:
    measure = Measure("none of them", 20.2)
    found = fusions.why_worse(path, worth(20), worth(25), measure)
    assert "20.2 as the file is written and 25.0 in the converted model" in found
    assert "no optimization is why" in found
    assert measure.asked == ["none"]


def test_an_optimization_is_left_out_by_name(path: Path) -> None:
    without = get_runtime("onnxruntime", without=("QDQSelectorActionTransformer",))
    assert "QLinearConv" in count_kinds(get_runtime("onnxruntime").executed_ops(path))
    assert "QLinearConv" not in count_kinds(without.executed_ops(path))


def test_export_reports_it(converted: torch.fx.GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    assert fxq.export_onnx(converted, path).fusion == ""
    monkeypatch.setattr(fusions, "LOST_DB", -99.0)  # everything counts as a loss
    report = fxq.export_onnx(converted, path)
    assert report.fusion.startswith("output 'output' has ")
    assert report.fusion in str(report)


def test_the_share_of_values_further_than_one_lsb_is_told() -> None:
    parity = compare("y", torch.zeros(8), torch.tensor([0, 0.5, -1, 1.01, 0, 0, 0, -3]), 1.0)
    assert parity.beyond == 2 / 8
