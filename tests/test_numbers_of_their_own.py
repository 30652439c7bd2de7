"""Models whose numbers are not those of their inputs alone: random values, the batch, writes that no graph shows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """Two convolutions and a function between them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self, self.first(x)))


def added_out(_: Any, y: Tensor) -> Tensor:
    z = torch.empty_like(y)
    torch.add(y, y, out=z)
    return z


def doubled_data(_: Any, y: Tensor) -> Tensor:
    y.data.mul_(2)
    return y


def doubled_list(_: Any, y: Tensor) -> Tensor:
    torch._foreach_mul_([y], 2.0)
    return y


def prepare(function: Callable[[Any, Tensor], Tensor], **options: Any) -> torch.fx.GraphModule:
    return fxq.prepare(Between(function).eval(), X, "onnxruntime", **options)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda _, y: y + torch.rand(1), id="burned in by the first front end"),
        pytest.param(lambda _, y: y + torch.randn_like(y) * 1e-3, id="little noise"),
        pytest.param(lambda _, y: F.dropout(y), id="dropout"),
        pytest.param(lambda _, y: F.rrelu(y, training=True), id="rrelu"),
        pytest.param(lambda _, y: F.scaled_dot_product_attention(y, y, y, dropout_p=0.3), id="attention"),
    ],
)
@pytest.mark.parametrize("frontend", ["auto", "export"])
def test_random_values_are_said_and_the_line_is_named(function: Any, frontend: str) -> None:
    with pytest.warns(UserWarning, match=r"draws random numbers in evaluation, in .*test_numbers_of_their_own.py:"):
        prepare(function, frontend=frontend)


def test_file_of_random_values_is_refused_for_what_it_is(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="draws random numbers"):
        prepared = prepare(lambda _, y: F.dropout(y))
    fxq.calibrate(prepared, [X])
    with pytest.raises(fxq.ExportError, match="draws random numbers, and the file draws others"):
        fxq.export_onnx(fxq.convert(prepared), tmp_path / "m.onnx")


def test_random_values_that_change_nothing_are_taken() -> None:
    def drawn_anyway(model: Any, y: Tensor) -> Tensor:
        skipped = torch.rand(())  # as LayerDrop does
        return y * skipped if model.training else y

    assert fxq.explain(prepare(drawn_anyway)).counts["weight"] == 2


def batch_norm(model: Any, y: Tensor) -> Tensor:
    return F.batch_norm(y, model.mean, model.var, training=True)


def batch_norm_by_name(model: Any, y: Tensor) -> Tensor:
    return F.batch_norm(y, running_mean=model.mean, running_var=model.var, training=True)


@pytest.mark.parametrize("frontend", ["symbolic", "export"])
@pytest.mark.parametrize("function", [batch_norm, batch_norm_by_name])
def test_batch_norm_by_the_batch_is_said_and_written_right(function: Any, frontend: str, tmp_path: Path) -> None:
    model = Between(function).eval()
    with pytest.warns(UserWarning, match=r"depends on the others of its batch. In .*pass training=self.training"):
        prepared = fxq.prepare(model, X, "onnxruntime", frontend=frontend)
    fxq.calibrate(prepared, [X])
    report = fxq.export_onnx(fxq.convert(prepared), tmp_path / "m.onnx")
    assert report.quality is not None
    assert report.quality.against == "the original model"
    assert report.quality.sqnr_db > 25


@pytest.mark.parametrize("function", [added_out, doubled_data])
def test_other_writes_are_followed(function: Any, tmp_path: Path) -> None:
    prepared = prepare(function)
    fxq.calibrate(prepared, [X])
    report = fxq.export_onnx(fxq.convert(prepared), tmp_path / "m.onnx")
    assert report.quality is not None
    assert report.quality.sqnr_db > 25


def test_out_is_refused_where_the_first_front_end_is_asked_for() -> None:
    with pytest.raises(fxq.TraceError, match=r"add\(out=...\) writes into another tensor.*test_numbers.*y = add"):
        prepare(added_out, frontend="symbolic")


def test_out_in_training_alone_is_kept() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight)

    torch.manual_seed(0)
    model = nn.Sequential(torch.nn.utils.spectral_norm(Linear())).eval()  # whose power iteration is out=
    prepared = fxq.prepare(model, X[0, 0, :, :1].expand(6, 8), "onnxruntime", qat=True)
    before = prepared.state_dict()["0.weight_u"].clone()
    prepared.train()(X[0, 0, :, :1].expand(6, 8))
    assert not torch.equal(prepared.state_dict()["0.weight_u"], before)


@pytest.mark.parametrize("frontend", ["auto", "export"])
def test_functions_of_tensor_lists_are_refused(frontend: str) -> None:
    with pytest.raises(fxq.TraceError, match=r"_foreach_mul_ computes a list of tensors at once.*for each tensor"):
        prepare(doubled_list, frontend=frontend)


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # of torch's own kernels
def test_lstm_with_a_projection_is_no_onnx(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.LSTM(4, 4, proj_size=2, batch_first=True)).eval(), torch.randn(2, 3, 4)
    converted = fxq.quantize(model, recipe="weight_only", example_inputs=x)
    with pytest.raises(fxq.ExportError, match="the LSTM '0' has proj_size=2"):
        fxq.export_onnx(converted, tmp_path / "m.onnx")
