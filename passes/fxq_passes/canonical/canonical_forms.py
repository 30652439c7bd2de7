"""The spellings of an operation that ``functional_to_module`` brings together, as tables.

A functional row says which module does the same, and which arguments behind the input the module's constructor takes,
in the order in which the function takes them.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Spelling:
    """A function of one tensor that a stateless module computes too."""

    module: type[nn.Module]
    parameters: tuple[str, ...] = ()


_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")

FUNCTIONS: Mapping[Any, Spelling] = MappingProxyType({
    **dict.fromkeys((F.relu, torch.relu), Spelling(nn.ReLU)),
    F.relu6: Spelling(nn.ReLU6),
    F.hardtanh: Spelling(nn.Hardtanh, ("min_val", "max_val")),
    F.silu: Spelling(nn.SiLU),
    F.hardswish: Spelling(nn.Hardswish),
    F.hardsigmoid: Spelling(nn.Hardsigmoid),
    F.gelu: Spelling(nn.GELU, ("approximate",)),
    F.mish: Spelling(nn.Mish),
    F.leaky_relu: Spelling(nn.LeakyReLU, ("negative_slope",)),
    F.elu: Spelling(nn.ELU, ("alpha",)),
    **dict.fromkeys((F.sigmoid, torch.sigmoid), Spelling(nn.Sigmoid)),
    **dict.fromkeys((F.tanh, torch.tanh), Spelling(nn.Tanh)),
    **dict.fromkeys((F.softmax, torch.softmax), Spelling(nn.Softmax, ("dim",))),
    torch.max_pool1d: Spelling(nn.MaxPool1d, _POOL[:5]),
    torch.max_pool2d: Spelling(nn.MaxPool2d, _POOL[:5]),
    torch.max_pool3d: Spelling(nn.MaxPool3d, _POOL[:5]),
    F.max_pool1d: Spelling(nn.MaxPool1d, _POOL),
    F.max_pool2d: Spelling(nn.MaxPool2d, _POOL),
    F.max_pool3d: Spelling(nn.MaxPool3d, _POOL),
    F.avg_pool1d: Spelling(nn.AvgPool1d, _AVG_POOL[:5]),
    F.avg_pool2d: Spelling(nn.AvgPool2d, _AVG_POOL),
    F.avg_pool3d: Spelling(nn.AvgPool3d, _AVG_POOL),
    F.adaptive_avg_pool1d: Spelling(nn.AdaptiveAvgPool1d, ("output_size",)),
    F.adaptive_avg_pool2d: Spelling(nn.AdaptiveAvgPool2d, ("output_size",)),
    F.adaptive_avg_pool3d: Spelling(nn.AdaptiveAvgPool3d, ("output_size",)),
})  # fmt: skip

METHODS: Mapping[str, Spelling] = MappingProxyType(
    {
        "relu": Spelling(nn.ReLU),
        "sigmoid": Spelling(nn.Sigmoid),
        "tanh": Spelling(nn.Tanh),
        "softmax": Spelling(nn.Softmax, ("dim",)),
    }
)

# clamp is a function and a method with two optional bounds: one of 0 below is ReLU, two numbers are Hardtanh.
CLAMPS = (torch.clamp, torch.clip, "clamp", "clip")

# Operations of several tensors have no module; each has one canonical function.
CANONICAL: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        **dict.fromkeys((torch.add, "add"), operator.add),
        **dict.fromkeys((torch.sub, torch.subtract, "sub", "subtract"), operator.sub),
        **dict.fromkeys((torch.mul, torch.multiply, "mul", "multiply"), operator.mul),
        **dict.fromkeys((torch.div, torch.divide, torch.true_divide, "div", "divide", "true_divide"), operator.truediv),
        **dict.fromkeys((operator.matmul, torch.bmm, torch.mm, "matmul", "bmm", "mm", "__matmul__"), torch.matmul),
        **dict.fromkeys((torch.concat, torch.concatenate), torch.cat),
    }
)


@dataclass(frozen=True)
class WeightedSpelling:
    """A function with a weight that a module computes too. ``options`` name what follows (input, weight, bias)."""

    module: type[nn.Module]
    options: tuple[str, ...] = ()
    is_transposed: bool = False


_CONV = ("stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("stride", "padding", "output_padding", "groups", "dilation")

WEIGHTED: Mapping[Any, WeightedSpelling] = MappingProxyType(
    {
        F.conv1d: WeightedSpelling(nn.Conv1d, _CONV),
        F.conv2d: WeightedSpelling(nn.Conv2d, _CONV),
        F.conv3d: WeightedSpelling(nn.Conv3d, _CONV),
        F.conv_transpose1d: WeightedSpelling(nn.ConvTranspose1d, _CONV_TRANSPOSE, is_transposed=True),
        F.conv_transpose2d: WeightedSpelling(nn.ConvTranspose2d, _CONV_TRANSPOSE, is_transposed=True),
        F.conv_transpose3d: WeightedSpelling(nn.ConvTranspose3d, _CONV_TRANSPOSE, is_transposed=True),
        F.linear: WeightedSpelling(nn.Linear),
    }
)
