"""Each operation on integers against ONNX Runtime's integer kernels and the converted graph: within one code."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from integer_models import Between, Call, converted, optimized, step_of
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq.graph import check_graph
from fxq.quant import lowered_kind
from fxq.stage import Stage

SIZES = {1: (12,), 2: (8, 9), 3: (5, 6, 4)}


def split_and_swapped(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([b, a], 1)


def written_hard_swish(x: Tensor) -> Tensor:
    return x * F.relu6(x + 3) / 6


def normalized() -> nn.Module:
    """Return a batch norm that no layer before or behind it takes in."""
    norm = nn.BatchNorm2d(4)
    for tensor in (norm.running_var, norm.weight, norm.bias):
        nn.init.uniform_(tensor, 0.2, 1.5)
    return nn.Sequential(norm, nn.ReLU(), nn.MaxPool2d(2))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv1d": lambda: Between(nn.Conv1d(4, 6, 3, padding=1), 6, 1),
    "conv3d": lambda: Between(nn.Conv3d(4, 6, (1, 3, 2), padding=(0, 1, 1)), 6, 3),
    "strided": lambda: Between(nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2)), 6),
    "dilated": lambda: Between(nn.Conv2d(4, 6, 3, dilation=2, padding=2), 6),
    "grouped": lambda: Between(nn.Conv2d(4, 6, 3, groups=2, bias=False), 6),
    "depthwise": lambda: Between(nn.Conv2d(4, 8, 3, groups=4, padding="same"), 8),
    "reflected": lambda: Between(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), 4),
    "transposed": lambda: Between(nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), 6),
    "transposed 1d": lambda: Between(nn.ConvTranspose1d(4, 6, 4, stride=3, bias=False), 6, 1),
    "transposed 3d": lambda: Between(nn.ConvTranspose3d(4, 6, 2, stride=(1, 2, 1)), 6, 3),
    "transposed, grouped": lambda: Between(nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, dilation=2), 6),
    "transposed, cut off": lambda: Between(nn.ConvTranspose2d(4, 6, 2, padding=2), 6),
    "linear": lambda: Between(nn.Sequential(nn.Flatten(2), nn.Linear(12, 5)), 4, 1),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: Between(nn.ReLU(), 4),
    "relu6": lambda: Between(nn.ReLU6(), 4),
    "hardtanh": lambda: Between(nn.Hardtanh(-0.3, 0.4), 4),
    "leaky relu": lambda: Between(nn.LeakyReLU(0.1), 4),
    "sigmoid": lambda: Between(nn.Sigmoid(), 4),
    "hard swish": lambda: Between(nn.Hardswish(), 4),
    "silu": lambda: Between(nn.SiLU(), 4),
    "gelu": lambda: Between(nn.GELU(), 4),
    "hard swish, written": lambda: Between(Call(written_hard_swish), 4),
    "silu, written": lambda: Between(Call(lambda x: x * torch.sigmoid(x)), 4),
    "max pool": lambda: Between(nn.MaxPool2d(3, 2, 1), 4),
    "max pool, ceil": lambda: Between(nn.MaxPool2d(2, ceil_mode=True), 4),
    "max pool, uneven": lambda: Between(nn.AdaptiveMaxPool2d((3, 4)), 4),
    "average pool": lambda: Between(nn.AvgPool2d(3, 2, 1), 4),
    "average pool, real ones": lambda: Between(nn.AvgPool2d((3, 2), 2, 1, True, False), 4),
    "average pool, own divisor": lambda: Between(nn.AvgPool2d(2, divisor_override=3), 4),
    "average pool, 1d": lambda: Between(nn.AvgPool1d(3), 4, 1),
    "average pool, uneven": lambda: Between(nn.AdaptiveAvgPool2d((3, 4)), 4),
    "global pool": lambda: Between(nn.AdaptiveAvgPool2d(1), 4),
    "mean": lambda: Between(Call(lambda x: x.mean((2, 3), keepdim=True)), 4),
    "mean of one dimension": lambda: Between(Call(lambda x: x.mean(-1)), 4, 2, nn.Conv1d(4, 4, 1)),
    "add": lambda: Between(Call(lambda x: x + torch.sigmoid(x.mean((2, 3), keepdim=True))), 4),
    "sub": lambda: Between(Call(lambda x: x - F.max_pool2d(x, 3, 1, 1)), 4),
    "mul": lambda: Between(Call(lambda x: x * F.avg_pool2d(x, 3, 1, 1)), 4),
    "squeeze and excite": lambda: Between(Call(lambda x: x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1))), 4),
    "scaled by channel": lambda: Between(Call(lambda x, w: x * w, torch.rand(4, 1, 1)), 4),
    "shifted by channel": lambda: Between(Call(lambda x, w: x + w, torch.rand(4, 1, 1)), 4),
    "doubled": lambda: Between(Call(lambda x: x + x), 4),
    "batch norm": lambda: Between(nn.Sequential(nn.MaxPool2d(2), normalized()), 4),
    "cat": lambda: Between(Call(lambda x: torch.cat([x, torch.tanh(x)], 1)), 8),
    "chunk": lambda: Between(Call(split_and_swapped), 4),
    "slice": lambda: Between(Call(lambda x: x[:, 1:, ::2]), 3),
    "pixel shuffle": lambda: Between(nn.PixelShuffle(2), 1),
    "transpose": lambda: Between(Call(lambda x: x.transpose(2, 3)), 4),
    "view by size": lambda: Between(Call(lambda x: x.view(x.shape[0], 4, -1)), 4, 2, nn.Conv1d(4, 4, 1)),
    "pad": lambda: Between(Call(lambda x: F.pad(x, (1, 2, 0, 1), value=0.25)), 4),
    "replicated": lambda: Between(Call(lambda x: F.pad(x, (1, 2), mode="replicate")), 4, 1),
    "nearest": lambda: Between(nn.Upsample(scale_factor=2), 4),
    "nearest, by size": lambda: Between(Call(lambda x: F.interpolate(x, size=(5, 12), mode="nearest-exact")), 4),
    "bilinear": lambda: Between(nn.Upsample(scale_factor=2, mode="bilinear"), 4),
    "bilinear, aligned": lambda: Between(nn.Upsample(size=(11, 5), mode="bilinear", align_corners=True), 4),
    "trilinear": lambda: Between(nn.Upsample(scale_factor=1.5, mode="trilinear"), 4, 3),
    "area": lambda: Between(Call(lambda x: F.interpolate(x, size=(5, 4), mode="area")), 4),
}


# torch.onnx has no adaptive max pool, and drops the divisor.
NOT_IN_ONNX = ("max pool, uneven", "average pool, own divisor")


def example(model: nn.Module) -> Tensor:
    dims = model.first.weight.dim() - 2
    return torch.randn(2, 3, *SIZES[dims], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [*LAYERS, *OTHERS])
def test_an_operation_is_within_one_code_of_onnx_runtime(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = {**LAYERS, **OTHERS}[name]()
    x = example(model)
    qdq = converted(model, x)
    integer = fxq.to_integer(qdq)
    result = integer(x)
    step = step_of(qdq)
    # Half a step more: outputs are float32 multiples of the step.
    if name not in NOT_IN_ONNX:
        assert float((result - optimized(qdq, x, tmp_path)).abs().max()) < 1.5 * step
    assert float((result - qdq(x)).abs().max()) < 1.5 * step
    check_graph(integer, Stage.INTEGER)
    kinds = [lowered_kind(node.target) for node in integer.graph.nodes]
    assert (kinds.count("quantize"), kinds.count("dequantize")) == (1, 1)


@pytest.mark.parametrize("name", [*LAYERS, *OTHERS])
def test_what_a_target_fuses_is_one_rounding(name: str) -> None:
    torch.manual_seed(0)
    model = {**LAYERS, **OTHERS}[name]()
    x = example(model)
    qdq = converted(model, x, "tensorrt")
    integer = fxq.to_integer(qdq)
    # The last layer gives sums: what is 1 code of its input moves them by less than 1 / 127 of the largest.
    want = qdq(x)
    assert float((integer(x) - want).abs().max()) < float(want.abs().max()) / 64
    check_graph(integer, Stage.INTEGER)
