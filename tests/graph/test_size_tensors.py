"""Sizes that are put in a tensor and taken out again, as models do that were ONNX: they stay open."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.graph.trace import trace

X = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))


class Sizes(nn.Module):
    def __init__(self, compute: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.compute = compute
        self.register_buffer("rest", torch.tensor([-1]))
        self.register_buffer("zero", torch.tensor(0))
        self.register_buffer("axes", torch.tensor([0, 2]))

    def forward(self, x: Tensor) -> Any:
        return self.compute(self, torch.tensor(x.shape, device=x.device), x)


def as_reshape_of_onnx(self: Any, sizes: Tensor, x: Tensor) -> Tensor:
    shape = torch.cat([sizes[(self.zero,)].unsqueeze(dim=0).to(torch.int32).long(), self.rest], 0)
    if torch.any(shape == 0):
        raise NotImplementedError
    return torch.reshape(x, torch.Size(shape))


def as_maximum_of_onnx(self: Any, sizes: Tensor, x: Tensor) -> Tensor:
    tensors = (x, self.rest)
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))  # type: ignore[no-untyped-call]
    return torch.amax(torch.stack([tensor.broadcast_to(shape) for tensor in tensors]), dim=0)


def as_range_of_onnx(self: Any, sizes: Tensor, x: Tensor) -> Tensor:
    last = torch.mul(sizes[1], sizes[2]).to(torch.float32)
    return x.flatten(1) + torch.arange(0.0, last.item(), 1.0)


COMPUTED = {
    "reshape": as_reshape_of_onnx,
    "maximum": as_maximum_of_onnx,
    "range": as_range_of_onnx,
    "selected": lambda self, sizes, x: x.new_zeros(torch.Size(sizes.index_select(0, self.axes))),
    "cut": lambda self, sizes, x: x.repeat(2, 2, 1)[: sizes[0], : sizes[1] // 2],
    "view": lambda self, sizes, x: x.view(sizes[0], -1),
    "list": lambda self, sizes, x: x.reshape([*sizes[:1].tolist(), -1]),
    "stacked": lambda self, sizes, x: x.reshape(torch.Size(torch.stack([sizes[0], sizes[1] * sizes[2]]))),
    "product": lambda self, sizes, x: x.reshape(torch.Size([torch.prod(sizes) - 0])),
    "reshaped": lambda self, sizes, x: x.reshape(torch.Size(torch.cat([sizes[:1].reshape(()).view(1), self.rest]))),
    "squeezed": lambda self, sizes, x: x.reshape(int(sizes[2:].squeeze(0)), -1),
    "made": lambda self, sizes, x: x.reshape(torch.Size(torch.tensor([x.shape[0], 24]))),
}


@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED.keys())
def test_a_size_stays_open_on_its_way_through_a_tensor(compute: Callable[..., Any]) -> None:
    model = Sizes(compute).eval()
    gm = trace(model, (X,))
    for x in (X, torch.cat([X, X, X])):
        assert torch.equal(gm(x), model(x))


def test_a_decision_by_such_a_size_is_remembered() -> None:
    def compute(_: Any, sizes: Tensor, x: Tensor) -> Tensor:
        return x * 2 if sizes[2] > 3 else x

    model = nn.Sequential(nn.Conv1d(6, 6, 1), Sizes(compute)).eval()
    prepared = fxq.prepare(model, X)
    fxq.calibrate(prepared, [X], progress=False)
    with pytest.raises(fxq.ExportError, match=r"sizes\[2\] > 3"):
        fxq.export_onnx(fxq.convert(prepared), "never.onnx", dynamic_shapes=({2: "width"},))


def test_a_parameter_may_have_the_name_of_a_method() -> None:
    class Named(nn.Module):
        def forward(self, item: Tensor) -> Tensor:
            return item * 2

    assert torch.equal(trace(Named(), None)(X), X * 2)


REFUSED = {
    "data": lambda self, sizes, x: x.reshape(torch.Size((sizes + 0 * x.argmax()).tolist())),
    "another number": lambda self, sizes, x: x.reshape(torch.Size((sizes * 1.0).long())),
    "written": lambda self, sizes, x: x.reshape(torch.Size(sizes.add_(0))),
}


@pytest.mark.parametrize("compute", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_size_is_refused(compute: Callable[..., Any]) -> None:
    with pytest.raises(fxq.TraceError, match=r"test_size_tensors\.py:\d+ .*lambda self, sizes, x"):
        trace(Sizes(compute).eval(), (X,))
