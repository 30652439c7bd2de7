"""What elementwise operations in float make of a tensor, before anything else reads it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxq
from fxq_passes.accuracy.elementwise import Elementwise, activations_behind
from fxq_passes.accuracy.layer_matrix import LayerMatrix

DATA = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions, and a function between them."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int) -> None:
        super().__init__()
        self.function = function
        self.first, self.last = nn.Conv2d(3, channels, 1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def found_in(function: Callable[[Tensor], Tensor], seen: list[Elementwise | None], channels: int = 4) -> GraphModule:
    """Calibrate with a pass that asks what is behind the quantizer of the first layer."""

    @fxq.register_pass("test_look_behind")
    class LookBehind(fxq.Pass):
        stage, tolerance = fxq.Stage.CALIBRATED, fxq.ANY

        def run(self, rw: fxq.Rewriter) -> None:
            (node,) = next(node for node in rw.nodes() if node.target == "first").users
            seen.append(activations_behind(rw, node))

    torch.manual_seed(0)
    gm = fxq.prepare(Net(function, channels).eval(), DATA, fxq.recipe("onnxruntime").with_pass("test_look_behind"))
    fxq.calibrate(gm, fxq.Data([DATA], held_out=0), progress=False)
    return gm


FUNCTIONS = {
    "hard swish": F.hardswish,
    "silu": F.silu,
    "scaled and shifted": lambda x: F.hardswish(x) * 0.5 + torch.arange(4.0).reshape(1, 4, 1, 1),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_it_is_followed_to_the_layer_and_computes_the_same(function: Callable[[Tensor], Tensor]) -> None:
    seen: list[Elementwise | None] = []
    gm = found_in(function, seen)
    (behind,) = seen
    assert behind is not None
    ((node, reader),) = behind.exits()
    assert reader.target == "last"
    value = torch.randn(6, 4, 5, 5)
    torch.testing.assert_close(behind.until(node)(value), function(value))
    matrix = LayerMatrix.of(gm.get_submodule("last"))
    assert matrix is not None
    patches, wanted = (matrix.sample([one], 10**6) for one in (value, function(value)))
    inner = patches != 0  # the padding of what the function makes is 0, and the function of 0 may not be
    torch.testing.assert_close(behind.through(node, matrix)(patches)[inner], wanted[inner])
    (read,) = behind.readers([value], 512)
    assert read.matrix.layer is matrix.layer


def test_a_gate_that_is_computed_ends_it() -> None:
    """Nothing but the hard swish is followed; what reads it is judged by its channels, each alike."""
    seen: list[Elementwise | None] = []
    found_in(lambda x: F.hardswish(x) * torch.sigmoid(x.mean((2, 3), keepdim=True)), seen)
    (behind,) = seen
    assert behind is not None
    assert not any(reader.target == "last" for _, reader in behind.exits())
    readers = behind.readers([torch.randn(2, 4, 5, 5)], 512)
    assert {one.matrix.groups for one in readers} == {4}


STORED = {
    "of positions": (lambda x: F.hardswish(x) * torch.arange(25.0).reshape(1, 1, 5, 5), 4),
    "that makes channels": (lambda x: F.hardswish(x) * torch.arange(4.0).reshape(1, 4, 1, 1), 1),
    "of more dimensions": (lambda x: (F.hardswish(x) * torch.arange(4.0).reshape(1, 1, 4, 1, 1))[0], 4),
}


@pytest.mark.parametrize(("function", "channels"), STORED.values(), ids=STORED.keys())
def test_a_stored_tensor_of_another_shape_ends_it(function: Callable[[Tensor], Tensor], channels: int) -> None:
    seen: list[Elementwise | None] = []
    found_in(function, seen, channels)
    (behind,) = seen
    assert behind is not None
    assert not any(node.op == "call_function" for node in behind.nodes)


def test_without_an_activation_there_is_nothing_to_follow() -> None:
    seen: list[Elementwise | None] = []
    found_in(lambda x: F.max_pool2d(x, 3, 1, 1), seen)
    assert seen == [None]
