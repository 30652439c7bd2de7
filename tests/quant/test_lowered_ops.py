"""The table of the operators of a lowered graph."""

import inspect
import subprocess
import sys

import pytest
import torch
from onnxscript.values import Opset

from fxq.quant import LOWERED_OPS, QUANTIZE, LoweredOp, lowered_kind

ROWS = list(LOWERED_OPS.values())


def names(row: LoweredOp) -> list[str]:
    """Return the names of the operator's arguments."""
    return [argument.name for argument in row.function._schema.arguments]  # type: ignore[attr-defined]


def test_every_operator_of_the_library_has_a_row() -> None:
    registered = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fxq::")]
    assert sorted(row.function.name() for row in ROWS) == sorted(registered)  # type: ignore[attr-defined]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.function.name())
def test_a_translation_takes_the_arguments_of_its_operator(row: LoweredOp) -> None:
    translated = row.translation(Opset("", row.opset))
    assert len(inspect.signature(translated).parameters) == len(names(row))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.function.name())
def test_a_row_speaks_of_arguments_that_there_are(row: LoweredOp) -> None:
    assert all(position < len(names(row)) for position in row.stored)
    assert row.kind in ("quantize", "dequantize", "dynamic", "integer", "float")
    assert bool(row.writes) == (row.kind not in ("integer", "float"))


def test_the_kind_of_any_other_function_is_none() -> None:
    assert lowered_kind(QUANTIZE) == "quantize"
    assert lowered_kind(torch.relu) is None
    assert lowered_kind("relu") is None


def test_what_writes_onnx_is_imported_when_an_operator_is_translated() -> None:
    code = "import sys, fxq.quant.ops; sys.exit('fxq.quant.ops.onnx_terms' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
