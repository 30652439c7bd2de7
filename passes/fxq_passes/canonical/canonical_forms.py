"""The forms of an operation that ``functional_to_module`` brings together, as tables.

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
class ModuleForm:
    """A function of one tensor that a stateless module computes too."""

    module: type[nn.Module]
    parameters: tuple[str, ...] = ()


_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")

FUNCTIONS: Mapping[Any, ModuleForm] = MappingProxyType({
    **dict.fromkeys((F.relu, torch.relu), ModuleForm(nn.ReLU)),
    F.relu6: ModuleForm(nn.ReLU6),
    F.hardtanh: ModuleForm(nn.Hardtanh, ("min_val", "max_val")),
    F.silu: ModuleForm(nn.SiLU),
    F.hardswish: ModuleForm(nn.Hardswish),
    F.hardsigmoid: ModuleForm(nn.Hardsigmoid),
    F.gelu: ModuleForm(nn.GELU, ("approximate",)),
    F.mish: ModuleForm(nn.Mish),
    F.leaky_relu: ModuleForm(nn.LeakyReLU, ("negative_slope",)),
    F.elu: ModuleForm(nn.ELU, ("alpha",)),
    **dict.fromkeys((F.sigmoid, torch.sigmoid), ModuleForm(nn.Sigmoid)),
    **dict.fromkeys((F.tanh, torch.tanh), ModuleForm(nn.Tanh)),
    **dict.fromkeys((F.softmax, torch.softmax), ModuleForm(nn.Softmax, ("dim",))),
    torch.max_pool1d: ModuleForm(nn.MaxPool1d, _POOL[:5]),
    torch.max_pool2d: ModuleForm(nn.MaxPool2d, _POOL[:5]),
    torch.max_pool3d: ModuleForm(nn.MaxPool3d, _POOL[:5]),
    F.max_pool1d: ModuleForm(nn.MaxPool1d, _POOL),
    F.max_pool2d: ModuleForm(nn.MaxPool2d, _POOL),
    F.max_pool3d: ModuleForm(nn.MaxPool3d, _POOL),
    F.avg_pool1d: ModuleForm(nn.AvgPool1d, _AVG_POOL[:5]),
    F.avg_pool2d: ModuleForm(nn.AvgPool2d, _AVG_POOL),
    F.avg_pool3d: ModuleForm(nn.AvgPool3d, _AVG_POOL),
    F.adaptive_avg_pool1d: ModuleForm(nn.AdaptiveAvgPool1d, ("output_size",)),
    F.adaptive_avg_pool2d: ModuleForm(nn.AdaptiveAvgPool2d, ("output_size",)),
    F.adaptive_avg_pool3d: ModuleForm(nn.AdaptiveAvgPool3d, ("output_size",)),
})  # fmt: skip

METHODS: Mapping[str, ModuleForm] = MappingProxyType(
    {
        "relu": ModuleForm(nn.ReLU),
        "sigmoid": ModuleForm(nn.Sigmoid),
        "tanh": ModuleForm(nn.Tanh),
        "softmax": ModuleForm(nn.Softmax, ("dim",)),
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
class WeightedForm:
    """A function with a weight that a module computes too. ``options`` name what follows (input, weight, bias)."""

    module: type[nn.Module]
    options: tuple[str, ...] = ()
    is_transposed: bool = False


_CONV = ("stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("stride", "padding", "output_padding", "groups", "dilation")

WEIGHTED: Mapping[Any, WeightedForm] = MappingProxyType(
    {
        F.conv1d: WeightedForm(nn.Conv1d, _CONV),
        F.conv2d: WeightedForm(nn.Conv2d, _CONV),
        F.conv3d: WeightedForm(nn.Conv3d, _CONV),
        F.conv_transpose1d: WeightedForm(nn.ConvTranspose1d, _CONV_TRANSPOSE, is_transposed=True),
        F.conv_transpose2d: WeightedForm(nn.ConvTranspose2d, _CONV_TRANSPOSE, is_transposed=True),
        F.conv_transpose3d: WeightedForm(nn.ConvTranspose3d, _CONV_TRANSPOSE, is_transposed=True),
        F.linear: WeightedForm(nn.Linear),
    }
)
