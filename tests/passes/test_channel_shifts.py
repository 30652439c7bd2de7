"""Channels that lie beside 0: moved to its middle by a bias, where all that reads them can take that back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.net import Net
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxq
from fxq.graph.float_model import in_float
from fxq.nn import ScaledChannels
from fxq.runtimes import get_runtime
from fxq_passes.accuracy.channel_groups import UsableLayers, channel_groups
from fxq_passes.accuracy.channel_shifts import shift_root
from fxq_passes.accuracy.layer_matrix import LayerMatrix
from fxq_passes.accuracy.reader import Extremes, Reader

X = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(16, 5, 8, generator=torch.Generator().manual_seed(0))
OFFSET_C = torch.tensor([8.0, -8.0, 0.0, 4.0, -2.0, 8.0, 1.0, -4.0])
PLAIN = fxq.recipe("tensorrt").replace(calibrator="max")
FOUND: list[str | None] = []


@fxq.register_pass("test_find_roots")
class FindRoots(fxq.Pass):
    """Keeps what it finds for the test."""

    stage = fxq.Stage.CALIBRATED

    def run(self, rw: fxq.Rewriter) -> None:
        usable = UsableLayers(rw)
        roots = [shift_root(rw, group, usable) for group in channel_groups(rw)]
        FOUND[:] = [None if root is None else str(root.target) for root in roots]


def conv(inputs: int = 8, outputs: int = 8, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)


def stream() -> nn.Module:
    """Two residual blocks on a stream whose channels lie beside 0."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        x = x + m.down(F.relu(m.up(x)))
        x = x + m.down2(F.relu(m.up2(x)))
        return m.last(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    first = conv(4)
    first.bias.data.copy_(OFFSET_C)  # type: ignore[union-attr]
    rest = {name: conv() for name in ("up", "down", "up2", "down2", "last")}
    return Net(forward, first=first, **rest).eval()


def calibrated(model: nn.Module, x: Tensor, recipe: fxq.Recipe) -> GraphModule:
    gm = fxq.prepare(model.eval(), x[:2], recipe)
    fxq.calibrate(gm, fxq.Data(x.split(4), held_out=0, progress=False))
    return gm


def noise(model: nn.Module, gm: GraphModule, x: Tensor) -> float:
    """Return the variance of the error of each output channel, summed: what biases do not make up for."""
    with torch.no_grad():
        return float((gm(x) - model(x)).movedim(1, 0).flatten(1).var(1).sum())


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_a_stream_is_centered_by_its_first_layer(target: str, tmp_path: Path) -> None:
    model, plain = stream(), fxq.recipe(target).replace(calibrator="max")
    before, gm = (calibrated(model, X, one) for one in (plain, plain.with_pass("equalize_channels")))
    with torch.no_grad(), in_float(gm):
        torch.testing.assert_close(gm(X), model(X), rtol=1e-4, atol=1e-4)
        middle_c = gm.get_submodule("first")(X).movedim(1, 0).flatten(1).mean(1)
    assert float(middle_c.abs().max()) < 2  # of 8
    assert noise(model, gm, X) < 0.4 * noise(model, before, X)
    if target == "onnxruntime":
        path = tmp_path / "model.onnx"
        fxq.export_onnx(fxq.convert(gm), path)
        (found,) = get_runtime(target).run(path, X.numpy())
        assert float((torch.from_numpy(found) - gm(X)).detach().abs().max()) < 0.02 * float(
            model(X).detach().abs().max()
        )


ROOTS: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, nn.Module], list[str | None]]] = {
    "convolutions": (lambda m, x: m.b(m.a(x)), {"a": conv(4), "b": conv()}, ["a"]),
    "a group that a rectifier is part of": (lambda m, x: m.b(F.relu(m.a(x))), {"a": conv(4), "b": conv()}, [None]),
    "a convolution that pads": (
        lambda m, x: m.b(m.a(x)), {"a": conv(4), "b": conv(8, 8, 3, padding=1)}, [None],
    ),
    "one of two readers pads": (
        lambda m, x: m.b(y := m.a(x)) + m.c(y), {"a": conv(4), "b": conv(), "c": conv(8, 8, 3, padding=1)}, [None],
    ),
    "the second operand of an add": (
        lambda m, x: m.c(m.a(x) + m.b(x)), {"a": conv(4), "b": conv(4), "c": conv()}, ["a"],
    ),
    "twice the same": (lambda m, x: m.b((y := m.a(x)) + y), {"a": conv(4), "b": conv()}, [None]),
    "an average": (
        lambda m, x: m.b(m.pool(m.a(x))), {"a": conv(4), "b": conv(), "pool": nn.AvgPool2d(2)}, ["a"],
    ),
    "an average with zeros": (
        lambda m, x: m.b(m.pool(m.a(x))), {"a": conv(4), "b": conv(), "pool": nn.AvgPool2d(2, padding=1)}, [None],
    ),
    "a sum": (
        lambda m, x: m.b(m.pool(m.a(x))),
        {"a": conv(4), "b": conv(), "pool": nn.AvgPool2d(2, divisor_override=1)},
        [None],
    ),
    "the largest": (
        lambda m, x: m.b(m.pool(m.a(x))), {"a": conv(4), "b": conv(), "pool": nn.MaxPool2d(3, 2, 1)}, ["a"],
    ),
    "the mean": (lambda m, x: m.b(m.a(x).mean((2, 3))), {"a": conv(4), "b": nn.Linear(8, 4)}, ["a"]),
    "a gate": (
        lambda m, x: m.b(m.a(x) * torch.sigmoid(m.c(x))), {"a": conv(4), "b": conv(), "c": conv(4)}, [None],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("function", "layers", "roots"), ROOTS.values(), ids=ROOTS.keys())
def test_which_bias_moves_all_that_is_read(
    function: Callable[[Any, Tensor], Any], layers: dict[str, nn.Module], roots: list[str | None]
) -> None:
    torch.manual_seed(0)
    model = Net(function, **layers)
    calibrated(model, X, PLAIN.with_pass("test_find_roots"))
    assert roots == FOUND
    gm = calibrated(model, X + 3, PLAIN.with_pass("equalize_channels"))
    with torch.no_grad(), in_float(gm):
        torch.testing.assert_close(gm(X), model(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_centers_what_linear_layers_read(bias: bool) -> None:
    torch.manual_seed(0)
    layers = {"norm": nn.LayerNorm(8, bias=bias), "up": nn.Linear(8, 16, bias=False), "down": nn.Linear(16, 8)}
    model = Net(lambda m, x: x + m.down(F.relu(m.up(m.norm(x)))), **layers)
    calibrated(model, TOKENS, PLAIN.with_pass("test_find_roots"))
    assert FOUND[0] == ("norm" if bias else None)


def test_what_computes_in_float_is_centered_behind(tmp_path: Path) -> None:
    """GELU makes next to nothing below 0: a symmetric range would leave half of its codes unused."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)).eval()
    x = 6 * torch.rand(64, 40, 8, generator=torch.Generator().manual_seed(0)) - 3
    before, gm = (calibrated(model, x, one) for one in (PLAIN, PLAIN.with_pass("equalize_channels")))
    (inserted,) = [module for module in gm.modules() if isinstance(module, ScaledChannels)]
    assert inserted.offset is not None
    assert _noise_of_tokens(model, gm, x) < 0.6 * _noise_of_tokens(model, before, x)
    with torch.no_grad(), in_float(gm):
        torch.testing.assert_close(gm(x), model(x), rtol=1e-4, atol=1e-4)
    fxq.save(gm, tmp_path / "model.fxq")
    assert torch.equal(fxq.load(tmp_path / "model.fxq", model)(x), gm(x))
    fxq.export_onnx(fxq.convert(gm), tmp_path / "model.onnx")  # checked against the module


def _noise_of_tokens(model: nn.Module, gm: GraphModule, x: Tensor) -> float:
    with torch.no_grad():
        return float((gm(x) - model(x)).flatten(0, 1).var(0).sum())


def test_few_samples_leave_the_room_there_is() -> None:
    """What a channel reaches in one half it does not in the other: centered, it would be cut."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)).eval()
    gm = calibrated(model, 3 * TOKENS, PLAIN.with_pass("equalize_channels"))
    assert not any(isinstance(module, ScaledChannels) for module in gm.modules())


def test_a_reader_errs_as_if_it_computed_with_what_was_moved() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 6, 3, groups=2), X + 5
    shift_c = Extremes.of([x], -3).center()
    assert float((x - shift_c.reshape(-1, 1, 1)).amax()) == pytest.approx(
        -float((x - shift_c.reshape(-1, 1, 1)).amin())
    )
    quantizer = fxq.TensorQuantizer(fxq.QuantDescriptor())
    quantizer.amax = 5.0
    matrix = LayerMatrix(layer, 2)
    reader = Reader(matrix, [x], 10**6)
    with torch.no_grad():
        moved = x - shift_c.reshape(-1, 1, 1)
        error = (layer(quantizer(moved)) - layer(moved)).movedim(1, 0).flatten(1)
        back = layer(moved) + matrix.response(shift_c).reshape(-1, 1, 1)
        torch.testing.assert_close(back.float(), layer(x), rtol=1e-4, atol=1e-4)
        power = layer(x).movedim(1, 0).flatten(1).var(1, unbiased=False).sum()
    # Half of the samples each; the other half errs alike.
    both = [reader.error(quantizer, None, half, shift_c) for half in (0, 1)]
    assert sum(both) / 2 == pytest.approx(float(error.var(1, unbiased=False).sum() / power), rel=0.05)
