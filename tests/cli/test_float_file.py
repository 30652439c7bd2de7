"""The float model as a file to time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxq.cli.float_file import write_float
from fxq.errors import ExportError
from fxq.runtimes import get_runtime


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, left: Tensor, *, right: Tensor) -> Tensor:
        return nn.functional.gelu(self.head(left)) * right


def test_a_model_is_written_with_inputs_by_position_and_by_keyword(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = ByKeyword().eval(), (torch.randn(1, 4), torch.randn(1, 2))
    path = tmp_path / "float.onnx"
    write_float(model, inputs, path)
    runtime = get_runtime("onnxruntime")
    (found,) = runtime.run(path, [one.numpy() for one in inputs])
    expected = model(inputs[0], right=inputs[1]).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # Below opset 20 it would be five operations, and the float model slower than it need be.
    assert "Gelu" in {op.kind for op in runtime.executed_ops(path)}


def test_what_torch_does_not_export_is_refused_by_its_own_reason(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^torch\.onnx\.export does not take ByKeyword: .*right"):
        write_float(ByKeyword().eval(), (torch.randn(1, 4),), tmp_path / "float.onnx")
    assert not list(tmp_path.iterdir())
