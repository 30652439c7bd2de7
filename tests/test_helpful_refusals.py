"""Calls that are nearly right are refused in words that say what is right."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()


CALLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "recipe as inputs": (lambda model: fxq.prepare(model, "tensorrt"), r"third argument, recipe='tensorrt'"),  # type: ignore[arg-type]
    "state dict": (lambda model: fxq.prepare(model.state_dict()), "make the model, and let it load_state_dict"),
    "plain dict": (lambda model: fxq.prepare(OrderedDict()), "load_state_dict"),  # type: ignore[arg-type]
    "numpy inputs": (lambda model: fxq.prepare(model, X.numpy()), "torch.from_numpy"),
    "meta batch": (lambda model: fxq.quantize(model, [X.to("meta")], progress=False), "meta device, which keeps no"),
    "verify a model": (lambda model: fxq.verify(model, "tensorrt"), "what is read is an ONNX file, by its path"),
    "bench a model": (fxq.bench, "what is read is an ONNX file, by its path"),
    "numpy batch": (lambda model: fxq.quantize(model, [X.numpy()], progress=False), "batch 0.*torch.from_numpy"),
    "keys": (lambda model: fxq.quantize(model, [{"image": X, "label": X}], progress=False), "rename its keys"),
    "first batch": (lambda model: fxq.quantize(model, [X[:, :2]], progress=False), "the first batch, .*does not fit"),
    "data set": (
        lambda model: fxq.quantize(model, torch.utils.data.TensorDataset(X), progress=False),  # type: ignore[arg-type]
        r"got TensorDataset: make batches of it with torch\.utils\.data\.DataLoader",
    ),
    "function": (lambda model: fxq.quantize(model, lambda: [X], progress=False), "got function: call it"),  # type: ignore[arg-type, return-value]
    "path of data": (
        lambda model: fxq.quantize(model, "photos/", progress=False),
        "got str: load the files, .*--calib-data",
    ),
    "path of a model": (lambda model: fxq.quantize("model.pt", [X]), "make the model, and let it load its weights"),  # type: ignore[arg-type]
    "directory": (lambda model: fxq.verify(Path.cwd(), "tensorrt"), "is a directory"),
    "field": (lambda model: fxq.QuantDescriptor.from_dict({"num_bit": 8}), "did you mean 'num_bits'"),
    "config": (lambda model: fxq.QConfig.from_dict({"weigth": {}}), "did you mean 'weight'"),
    "entry": (lambda model: fxq.Recipe.from_toml("targett = 'tensorrt'"), "did you mean 'target'"),
}


@pytest.mark.parametrize(("call", "message"), CALLS.values(), ids=CALLS.keys())
def test_the_message_says_what_is_right(model: nn.Module, call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(fxq.FxqError, match=message):
        call(model)


def test_given_example_inputs_are_not_called_a_batch(model: nn.Module) -> None:
    with pytest.raises(fxq.InputError, match=r"^the model fails on the example inputs"):
        fxq.quantize(model, [X], example_inputs=X[:, :2], progress=False)


@pytest.mark.parametrize("percentile", [101, -1])
def test_a_percentile_lies_between_0_and_100(model: nn.Module, percentile: float) -> None:
    prepared = fxq.prepare(model, X)
    fxq.calibrate(prepared, [X], progress=False)
    with pytest.raises(fxq.errors.CalibrationError, match=f"from 0 to 100, got {percentile}"):
        fxq.fit_ranges(prepared, "percentile", percentile=percentile)


@pytest.mark.parametrize("name", ["x.engine", "x.plan", "x.xml"])
def test_a_file_of_another_format_is_made_by_others(model: nn.Module, tmp_path: Path, name: str) -> None:
    with pytest.raises(fxq.errors.ExportError, match=r"the file is ONNX, name it \.onnx; (trtexec|openvino)"):
        fxq.export_onnx(fxq.quantize(model, [X], progress=False), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_weights_changed_between_prepare_and_convert_are_not_converted_in_silence(model: nn.Module) -> None:
    prepared = fxq.prepare(model, X)
    fxq.calibrate(prepared, [X], progress=False)
    fxq.convert(prepared)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.warns(UserWarning, match="weights or buffers were changed since fxq.prepare"):
        fxq.convert(prepared)


def test_a_patched_method_of_a_layer_keeps_its_effect_or_is_refused(model: nn.Module) -> None:
    class Doubling:
        def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return 2 * nn.functional.conv2d(x, weight, bias)

    model[0]._conv_forward = Doubling()  # type: ignore[index,union-attr,assignment,operator]
    converted = fxq.quantize(model, [X], progress=False)
    quality = fxq.explain(converted).quality
    assert quality is not None
    assert quality.sqnr_db is not None
    assert quality.sqnr_db > 30
    assert "_conv_forward replaced on the instance" in str(fxq.explain(converted))
    own = model[0]  # type: ignore[index]
    own._conv_forward = lambda x, weight, bias: own.weight.sum() * x  # type: ignore[union-attr,assignment,operator]
    with pytest.raises(fxq.errors.TraceError, match="_conv_forward replaced on the instance, by a function that holds"):
        fxq.prepare(model, X)
