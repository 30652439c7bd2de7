"""The table of `python -m benchmarks traffic`: real plans of a small model, ratios, what is held to, what failed."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import traffic
from benchmarks.traffic import Plan, Row, plans_of, table, verdicts
from fxq.runtimes import ExecutedOp, OpTensor

METHODS = ("float", "fxq", "modelopt")


def _row(**plans: Plan) -> Row:
    return Row("m", "float16", plans)


def _cells(row: Row) -> list[str]:
    return [cell.strip() for cell in table([row], METHODS).splitlines()[2].split("|")[1:-1]]


def test_kernels_integers_and_traffic_are_those_of_the_plan():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 16))
    plans = plans_of(model.eval(), "fxq")
    assert [(plan.in_int8, plan.weighted, plan.note) for plan in plans.values()] == [(2, 2, "")] * 2
    # Behind the quantizer of the input: convolution, product, and what is behind each.
    assert [plan.kernels for plan in plans.values()] == [5, 5]
    # An image in float32, read, and its codes, with a fourth channel, written and read; then the convolution's results.
    fixed, results = 224 * 224 * (3 * 4 + 2 * 4) / 1e6, 2 * 56 * 56 * 16 / 1e6
    assert plans["float32"].traffic_mb == pytest.approx(fixed + 4 * results, rel=0.01)
    assert plans["float16"].traffic_mb == pytest.approx(fixed + 2 * results, rel=0.01)
    assert [(plan.in_int8, plan.weighted) for plan in plans_of(model, "float").values()] == [(0, 2)] * 2


@pytest.mark.parametrize(
    ("kinds", "is_in_int8"),
    [
        ({"correlation": "int8", "kgen": "float32"}, True),  # what is behind it scales its sums
        ({"kgen": "int8", "gemm": "float32"}, False),  # what is in front of it dequantizes
        ({"kgen": "int8"}, True),  # attention as one kernel
        ({}, False),
    ],
    ids=["scaled behind", "in float", "fused whole", "unknown"],
)
def test_an_operation_is_in_int8_if_the_kernel_that_multiplies_reads_int8(kinds, is_in_int8):
    ops = [ExecutedOp(kind, kind, (OpTensor("x", dtype, (1,)),), (), ("product",)) for kind, dtype in kinds.items()]
    assert traffic._is_in_int8("product", ops) is is_in_int8


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (ModuleNotFoundError("x", name="modelopt"), "not installed: modelopt"),
        (ValueError("an\noperator"), "failed: ValueError: an operator"),
    ],
    ids=["absent", "broken"],
)
def test_a_peer_that_fails_has_no_plan_and_its_other_file_goes_on(monkeypatch, error, note):
    def write(model: nn.Module, images: Tensor, dtype: torch.dtype, path: Path) -> None:
        if dtype is torch.float16:
            raise error

    monkeypatch.setattr(traffic, "WRITERS", {"modelopt": write})
    monkeypatch.setattr(traffic, "plan_of", lambda path: Plan(1, 1, 3, 2.0))
    plans = plans_of(nn.Identity(), "modelopt")
    assert plans["float32"] == Plan(1, 1, 3, 2.0)
    assert plans["float16"].note == note
    row = _row(float=Plan(0, 1, 2, 4.0), fxq=Plan(1, 1, 3, 2.0), modelopt=plans["float16"])
    assert _cells(row)[4:] == ["none", "0.50", ""]
    assert verdicts([row])[-1] == f"m float16, modelopt: {note}"


def test_what_is_in_float_and_what_travels_more_is_listed():
    better = _row(float=Plan(0, 2, 5, 2.0), fxq=Plan(2, 2, 7, 1.0), modelopt=Plan(2, 2, 7, 1.0))
    said = verdicts([better])
    assert said[0] == "Convolutions and matrix products all in int8: holds"
    assert said[1] == "No more traffic than float: holds; geometric mean of 1: 0.50"
    assert said[2] == "No more traffic than modelopt: holds; geometric mean of 1: 1.00"
    worse = _row(float=Plan(0, 2, 5, 1.0), fxq=Plan(1, 2, 7, 2.0), modelopt=Plan(2, 2, 7, 1.0))
    said = verdicts([worse])
    assert said[0] == "Convolutions and matrix products all in int8: missed: m float16 1"
    assert said[1].startswith("No more traffic than float: missed: m float16 2.00;")
    assert _cells(worse)[2:] == [
        "1.0 MB, 5 kernels, 0 of 2 int8", "2.0 MB, 7 kernels, 1 of 2 int8", "1.0 MB, 7 kernels, 2 of 2 int8",
        "2.00", "2.00",
    ]  # fmt: skip


def test_a_model_without_a_plan_holds_nothing():
    row = _row(float=Plan(0, 2, 5, 2.0), fxq=Plan(note="failed"), modelopt=Plan(2, 2, 7, 1.0))
    assert math.isnan(row.share("float"))
    assert verdicts([row]) == [
        "Convolutions and matrix products all in int8: missed: m float16 has no plan",
        "m float16, fxq: failed",
    ]
