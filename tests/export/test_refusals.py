"""export_onnx refuses what it cannot write right, says why, and leaves no file behind."""

from pathlib import Path

import pytest
import torch
from lowered_models import Residual, lower, lowered_residual
from torch import Tensor, nn

import fxq
from fxq.errors import ExportError, InputError, StageError
from fxq.export import ExportOptions, export_onnx

STATIC = ExportOptions(dynamic_batch=False)


class FixedBatch(nn.Module):
    def __init__(self, batch: int) -> None:
        super().__init__()
        self.fc, self.batch = nn.Linear(12, 4), batch

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.reshape(self.batch, 12))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_size_in_the_code_is_an_error_that_names_the_option(tmp_path: Path, batch: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, 3, 4)
    gm = lower(FixedBatch(batch), x)
    with pytest.raises(ExportError, match="dynamic_batch=False"):
        export_onnx(gm, tmp_path / "model.onnx", x)
    assert list(tmp_path.iterdir()) == []
    export_onnx(gm, tmp_path / "model.onnx", x, STATIC)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    gm, x = lowered_residual()
    with pytest.raises(ExportError, match="nowhere"):
        export_onnx(gm, tmp_path / "nowhere" / "model.onnx", x)
    with pytest.raises(ExportError, match="is a directory"):
        export_onnx(gm, tmp_path, x)


def test_a_failed_check_leaves_the_older_file_alone(tmp_path: Path) -> None:
    gm, x = lowered_residual()
    path = tmp_path / "model.onnx"
    path.write_bytes(b"older")
    gm.get_submodule("block.0_weight_quantizer").scale.neg_()
    with pytest.raises(ExportError, match=r"block\.0\.weight.*not positive"):
        export_onnx(gm, path, x)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"older"


def test_a_module_that_was_never_traced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"fxq\.convert"):
        export_onnx(Residual(), tmp_path / "model.onnx", torch.randn(1, 3, 16, 16))


def test_missing_and_unfit_example_inputs_are_input_errors(tmp_path: Path) -> None:
    gm, _ = lowered_residual()
    with pytest.raises(InputError, match="example_inputs"):
        export_onnx(gm, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="does not run on the example inputs"):
        export_onnx(gm, tmp_path / "model.onnx", torch.randn(1, 4, 16, 16))


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # deprecated
def test_torchscript_is_refused_by_path_where_no_file_can_hold_it(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))).eval()
    converted = fxq.quantize(model, [x], progress=False)
    torch.testing.assert_close(converted(x), model(x), rtol=0, atol=0.05)  # 8 bits of one layer
    with pytest.raises(ExportError, match=r"module '1' is compiled TorchScript.* put the Python module"):
        fxq.export_onnx(converted, tmp_path / "model.onnx")
    for frontend in ("auto", "export"):
        with pytest.raises(fxq.TraceError, match="is compiled TorchScript; pass the Python module"):
            fxq.prepare(torch.jit.script(model), x, frontend=frontend)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if type(x) is not Tensor:  # torch.export has tensors of its own
            raise KeyError("odd")
        return x


def test_whatever_a_module_raises_while_it_is_exported_is_an_export_error(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Odd()).eval()
    x = torch.randn(2, 4)
    recipe = fxq.recipe("tensorrt").replace(leaf_modules=("1",))
    with pytest.raises(ExportError, match="odd"):
        fxq.export_onnx(fxq.quantize(model, [x], recipe, progress=False), tmp_path / "model.onnx")
