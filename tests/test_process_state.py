"""Nothing that fxq does outlives its call, whether it succeeds or fails."""

import math
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small import images, residual, snapshot
from torch import Tensor, nn
from torch.fx import _symbolic_trace

import fxq

pytestmark = pytest.mark.filterwarnings("ignore:.* got a single value from all of the data:UserWarning")


@torch.fx.wrap
def scaled(x: Tensor, factor: float) -> Tensor:
    return x * factor


class Wrapped(nn.Module):
    """Calls a function that tracing takes for one operation, between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(scaled(self.first(x), 2.0)) + scaled(x.mean(), 1.0)  # type: ignore[no-any-return]


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@fxq.register_pass("fail_in_the_process")
class Fail(fxq.Pass):
    stage = fxq.Stage.PLANNED

    def run(self, rw: fxq.Rewriter) -> None:
        raise KeyError("what a plugin may raise")


def process() -> dict[str, Any]:
    """Return all that a model of torch may depend on beside itself."""
    return {
        "wrapped": set(_symbolic_trace._wrapped_fns_to_patch),
        "wrapped methods": list(_symbolic_trace._wrapped_methods_to_patch),
        "tracing": torch.fx._symbolic_trace.is_fx_symbolic_tracing(),
        "patched": [nn.Module.__call__, nn.Module.__getattr__, torch.zeros, math.sqrt, scaled, type, callable],
        "modes": torch.overrides._get_current_function_mode_stack(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "rng": torch.get_rng_state().tolist(),
        "random": random.getstate(),
        "warnings": [*warnings.filters],
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "hooks": [len(hooks) for name, hooks in vars(nn.modules.module).items() if name.endswith("_hooks")],
        "words": {"type", "callable"} & globals().keys(),
    }


def quantize(model: nn.Module, path: Path) -> None:
    prepared = fxq.prepare(model, images(2), "onnxruntime", verify=True)
    fxq.calibrate(prepared, [images(4)], progress=False)
    converted = fxq.convert(prepared)
    fxq.explain(converted)
    fxq.export_onnx(converted, path)


CALLS: dict[str, tuple[Callable[..., Any], Callable[[], nn.Module], type[Exception] | None]] = {
    "quantized": (quantize, residual, None),
    "wrapped": (quantize, lambda: Wrapped().eval(), None),
    "trained": (lambda model, path: fxq.prepare(model, images(2), qat=True), residual, None),
    "not traced": (quantize, lambda: nn.Sequential(residual(), Gate()).eval(), fxq.TraceError),
    "pass fails": (
        lambda model, path: fxq.prepare(
            model, images(2), fxq.recipe("tensorrt").with_pass("fail_in_the_process"), verify=True
        ),
        residual,
        fxq.PassError,
    ),
    "not exported": (lambda model, path: quantize(model, path / "missing" / "a.onnx"), residual, fxq.ExportError),
}


@pytest.mark.parametrize("has_grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize(("call", "model", "error"), CALLS.values(), ids=CALLS.keys())
def test_the_process_is_as_before(
    call: Callable[..., Any],
    model: Callable[[], nn.Module],
    error: type[Exception] | None,
    has_grad: bool,
    tmp_path: Path,
) -> None:
    users = model()
    with torch.set_grad_enabled(has_grad):
        users_before, before = snapshot(users), process()
        if error is None:
            call(users, tmp_path / "model.onnx")
        else:
            with pytest.raises(error):
                call(users, tmp_path / "model.onnx")
        assert process() == before
    assert snapshot(users) == users_before


def test_a_quantizer_behind_a_wrapped_function_spoils_no_later_trace(tmp_path: Path) -> None:
    quantize(Wrapped().eval(), tmp_path / "model.onnx")
    assert torch.fx.symbolic_trace(residual()).graph.find_nodes(op="call_module", target="conv1")
    assert fxq.explain(fxq.prepare(residual()))["conv1"].is_quantized


def test_a_replaced_wrapped_function_is_wrapped_no_more() -> None:
    prepared = fxq.prepare(Wrapped().eval(), images(2), "onnxruntime")
    wrapped = [node for node in prepared.graph.nodes if node.meta.get("is_wrapped")]
    assert {node.target for node in wrapped} == {scaled}
