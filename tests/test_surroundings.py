"""What is switched on around a call of fxq, and unusual models and inputs: the same result, or what to do."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.installed import run_python
from support.small import images, residual
from torch import Tensor, nn

import fxq

X = images(8)
Surroundings = Callable[[], contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def default(name: str, value: Any, before: Any) -> Iterator[None]:
    getattr(torch, name)(value)
    try:
        yield
    finally:
        getattr(torch, name)(before)


AROUND: dict[str, Surroundings] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "a device without values": lambda: torch.device("meta"),
    "another default device": lambda: default("set_default_device", "meta", None),
    "float64 by default": lambda: default("set_default_dtype", torch.float64, torch.float32),
    "bfloat16 by default": lambda: default("set_default_dtype", torch.bfloat16, torch.float32),
    "deterministic algorithms": lambda: default("use_deterministic_algorithms", True, False),
}


def results(recipe: str, around: Surroundings = contextlib.nullcontext) -> dict[str, Any]:
    """Return all numbers that come out of the calls that a user may make in ``around``."""
    model, found = residual(), {}
    with around():
        prepared = fxq.prepare(model, X[:2], recipe, verify=True)
        if recipe != "dynamic":
            fxq.calibrate(prepared, X.split(4), progress=False)
            for method in ("percentile", "mse", "entropy", "max"):
                fxq.fit_ranges(prepared, method)
                found |= {f"{method} {name}": value.clone() for name, value in prepared.state_dict().items()}
        fxq.calibrate_weights(prepared)
        converted = fxq.convert(prepared)
    found |= {f"{name} {value.dtype}": value for name, value in converted.state_dict().items()}
    return {**found, "output": converted(X).detach(), "graph": str(converted.graph)}


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, Any]]:
    """The results without anything around."""
    return {recipe: results(recipe) for recipe in ("onnxruntime", "dynamic")}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("recipe", ["onnxruntime", "dynamic"])
def test_what_is_switched_on_around_the_calls_does_not_show(
    recipe: str, around: Surroundings, plain: dict[str, dict[str, Any]]
) -> None:
    found = results(recipe, around)
    assert list(found) == list(plain[recipe])
    for name, value in plain[recipe].items():
        is_same = torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value
        assert is_same, name


def test_a_file_is_written_the_same_under_autocast(tmp_path: Path) -> None:
    converted = fxq.quantize(residual(), [X], progress=False)
    fxq.export_onnx(converted, tmp_path / "plain.onnx")
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        fxq.export_onnx(converted, tmp_path / "around.onnx")
    assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "around.onnx").read_bytes()


def test_a_model_prepared_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        prepared = fxq.prepare(residual(), X, qat=True)
        fxq.calibrate(prepared, [X], progress=False)
    prepared(X).sum().backward()
    assert prepared.get_parameter("conv2.weight").grad is not None


def test_a_model_and_inputs_made_in_inference_mode_are_taken() -> None:
    with torch.inference_mode():
        model, x = residual(), X.clone()
    expected = fxq.quantize(residual(), [X], progress=False)(X)
    assert torch.equal(fxq.quantize(model, [x], progress=False)(X), expected)


WORKERS = """
import torch
from support.small import images, residual
from torch.utils.data import DataLoader, TensorDataset
import fxq

x = images(8)
loader = DataLoader(TensorDataset(x, torch.zeros(8)), 4, num_workers=2, multiprocessing_context="fork")
expected = fxq.quantize(residual(), x.split(4), progress=False)(x)
print(torch.equal(fxq.quantize(residual(), loader, progress=False)(x), expected))
"""


def test_batches_of_worker_processes_are_taken() -> None:
    # In a process of its own: what other tests have loaded here has threads, and workers are forks.
    assert run_python(WORKERS, Path(__file__).parent).strip() == "True"


def test_memory_in_another_order_computes_the_same() -> None:
    expected = fxq.quantize(residual(), [X], progress=False)(X)
    model, x = residual().to(memory_format=torch.channels_last), X.to(memory_format=torch.channels_last)
    for found in (fxq.quantize(model, [x], progress=False), fxq.quantize(residual(), [x], progress=False)):
        # Other kernels round in another order, and so may ranges.
        torch.testing.assert_close(found(x), expected, atol=1e-4, rtol=1e-4)


class FromBytes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = residual()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x / 255)


@pytest.mark.filterwarnings("ignore:the calibration data is not like")  # nothing was trained
def test_images_in_bytes_are_taken(tmp_path: Path) -> None:
    x = (X.sigmoid() * 255).to(torch.uint8)
    report = fxq.export_onnx(fxq.quantize(FromBytes().eval(), [x], "onnxruntime", progress=False), tmp_path / "x.onnx")
    assert report.quantize_nodes > 3
    with pytest.raises(fxq.InputError, match=r"it got \(uint8\[8, 1, 8, 8\]\): pass example_inputs for which"):
        fxq.prepare(residual(), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recipe", ["tensorrt", "weight_only"])
def test_a_dtype_that_no_runtime_here_computes_in_is_named_at_export(
    tmp_path: Path, dtype: torch.dtype, recipe: str
) -> None:
    x = X.to(dtype)
    converted = fxq.quantize(residual().to(dtype), [x], recipe, x, progress=False)
    assert converted(x).dtype is dtype
    with pytest.raises(fxq.ExportError, match=f"the model computes in {str(dtype)[6:]}, .*: prepare model.float()"):
        fxq.export_onnx(converted, tmp_path / "x.onnx")


@pytest.mark.filterwarnings("ignore:there is nothing to calibrate")
def test_a_model_without_values_is_explained_and_nothing_else() -> None:
    model = residual().to("meta")
    prepared = fxq.prepare(model, X.to("meta"))
    assert fxq.explain(prepared)["conv1"].is_quantized
    says = r"computes with the model's weights, and '.*' is on the meta device.*to_empty"
    for call in (
        lambda: fxq.prepare(model, X.to("meta"), verify=True),
        lambda: fxq.calibrate(prepared, [X]),
        lambda: fxq.convert(prepared),
        lambda: fxq.quantize(model, recipe="dynamic", example_inputs=X.to("meta")),
    ):
        with pytest.raises(fxq.StageError, match=says):
            call()


def test_a_layer_that_has_never_run_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(4)).eval()
    with pytest.raises(fxq.StageError, match=r"1 lazy modules of the model have never run \('1'\): run model\("):
        fxq.prepare(model, X)
    model(X)
    assert fxq.prepare(model, X)(X).shape == (8, 4)
