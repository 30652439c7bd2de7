"""Python that decides by what is stored in tensors: no input reaches it, so it is known while tracing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.graph.trace import trace

X = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))


class Stored(nn.Module):
    """Holds numbers in buffers, and does with them and an input what it is given."""

    def __init__(self, compute: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.compute = compute
        self.register_buffer("shape", torch.tensor([0, -1]))
        self.register_buffer("scales", torch.tensor([1.0, 1.0, 2.0]))
        self.register_buffer("bounds", torch.tensor([1, 4]))
        self.register_buffer("three", torch.tensor(3))
        self.register_buffer("mask", torch.tensor([True, False, True, True, False, False]))
        self.register_buffer("calls", torch.tensor(0))
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.fixed = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Any:
        return self.compute(self, x)


def as_reshape_of_onnx(self: Any, x: Tensor) -> Tensor:
    shape = self.shape
    if torch.any(shape == 0):
        shape = [x.shape[index] if size == 0 else size for index, size in enumerate(shape)]
    return torch.reshape(x, torch.Size(shape))


def as_resize_of_onnx(self: Any, x: Tensor) -> Tensor:
    scales = self.scales.tolist()
    if scales[:2] != [1, 1]:
        raise NotImplementedError
    return nn.functional.interpolate(x, scale_factor=scales[2:])


def as_slice_of_onnx(self: Any, x: Tensor) -> Tensor:
    axes = self.bounds[:1].numpy()
    cut = {axis: slice(low, high) for axis, low, high in zip(axes, self.bounds[:1], self.bounds[1:], strict=True)}
    return x[tuple(cut.get(axis, slice(None)) for axis in range(max(axes) + 1))]


def written_to_a_computed_tensor(self: Any, x: Tensor) -> Tensor:
    counted = torch.zeros_like(self.shape)
    counted[0] = 2
    return x * 2 if counted.sum() == 2 else x


DECIDED = {
    "reshape": as_reshape_of_onnx,
    "resize": as_resize_of_onnx,
    "slice": as_slice_of_onnx,
    "size": lambda self, x: x.view(-1, self.three, 8),
    "sizes": lambda self, x: x.reshape([*self.bounds, 12]),
    "item": lambda self, x: x * self.gain.item(),
    "float": lambda self, x: x.clamp(max=float(self.gain.detach())),
    "range": lambda self, x: sum(x * step for step in range(self.three)),
    "in": lambda self, x: x * 2 if 3 in self.three[None] else x,
    "count": lambda self, x: x[:, : len(self.mask.nonzero())],
    "equal": lambda self, x: x * 2 if torch.equal(self.three, self.bounds[0] + 2) else x,
    "module": lambda self, x: x * 2 if self.norm.running_var.max() > 0.5 else x,
    "written": written_to_a_computed_tensor,
}


@pytest.mark.parametrize("compute", DECIDED.values(), ids=DECIDED.keys())
def test_what_is_stored_decides(compute: Callable[..., Any]) -> None:
    model = Stored(compute).eval()
    gm = trace(model, (X,))
    for x in (X, torch.cat([X, X])) if compute is not DECIDED["sizes"] else (X,):
        assert torch.equal(gm(x), model(x))


def test_a_model_that_was_onnx_is_quantized_whole_with_an_open_batch() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv1d(6, 8, 3), Stored(as_resize_of_onnx), nn.Conv1d(8, 4, 3), Stored(as_reshape_of_onnx)]
    model = nn.Sequential(*layers, nn.Linear(8, 3)).eval()
    prepared = fxq.prepare(model, X)
    fxq.calibrate(prepared, [X], progress=False)
    converted = fxq.convert(prepared)
    assert fxq.explain(converted).coverage.quantized == ("0", "2", "4")
    assert converted(torch.cat([X, X])).shape == (4, 3)


REFUSED = {
    "written before": lambda self, x: x * 2 if self.calls.add_(1) > 1 else x,
    "written later": lambda self, x: (x * 2 if self.calls > 1 else x) + self.calls.add_(1),
    "random": lambda self, x: x * 2 if torch.rand_like(self.gain) > 0.5 else x,
    "an input": lambda self, x: x * 2 if self.gain + x.sum() > 0 else x,
}


@pytest.mark.parametrize("compute", REFUSED.values(), ids=REFUSED.keys())
def test_what_may_be_another_number_in_the_next_call_decides_nothing(compute: Callable[..., Any]) -> None:
    with pytest.raises(fxq.TraceError, match=r"test_stored_values\.py:\d+ .*lambda self, x") as info:
        trace(nn.Sequential(Stored(compute)).eval(), (X,))
    assert info.value.path == "0"
    assert 'leaf_modules=("0",)' in str(info.value)


def test_what_is_trained_decides_nothing() -> None:
    layers = nn.Linear(4, 4), Stored(lambda self, x: x * self.gain.item())
    model = nn.Sequential(*layers).eval()
    reason = r"takes a number from '1\.gain', which training changes; make it a buffer"
    with pytest.raises(fxq.TraceError, match=reason):
        fxq.prepare(model, X, qat=True, frontend="symbolic")
    model[1].compute = lambda self, x: x * self.norm.running_var[0].item()
    with pytest.raises(fxq.TraceError, match=r"'1\.norm\.running_var', which training changes"):
        fxq.prepare(model, X, qat=True, frontend="symbolic")
    model[1].compute = lambda self, x: x * self.fixed.item()
    assert fxq.prepare(model, X, qat=True, frontend="symbolic")(X).shape == X.shape


def test_a_model_without_data_is_refused() -> None:
    with torch.device("meta"):
        model = Stored(lambda self, x: x * 2 if self.gain > 0 else x)
    with pytest.raises(fxq.InputError, match="data in the tensor 'gt', which has no data, on the meta device"):
        trace(model, (X.to("meta"),))
