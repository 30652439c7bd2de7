"""Quantized modules of fxq.compat: the arguments and outputs of torch with quantization off, quantizers of its own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq.compat.pytorch_quantization import nn as quant_nn
from fxq.compat.pytorch_quantization.nn.modules import _utils
from fxq.compat.pytorch_quantization.tensor_quant import QuantDescriptor
from fxq.errors import DescriptorError, DescriptorTypeError

CONV = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": False, "padding_mode": "reflect"}
TRANSPOSED = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "bias": False}
MODULES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("Linear", (4, 3), {"bias": False}),
    ("Linear", (4, 3), {"dtype": torch.float64}),
    *((f"Conv{dims}d", (4, 2, 3), CONV) for dims in (1, 2, 3)),
    *((f"Conv{dims}d", (4, 2, 3), {"padding": "same", "padding_mode": "circular"}) for dims in (1, 2, 3)),
    *((f"ConvTranspose{dims}d", (4, 2, 3), TRANSPOSED) for dims in (1, 2, 3)),
    *((f"{kind}Pool{dims}d", (2,), {"stride": 1, "padding": 1}) for kind in ("Max", "Avg") for dims in (1, 2, 3)),
    *((f"AdaptiveAvgPool{dims}d", (2,), {}) for dims in (1, 2, 3)),
    *((f"InstanceNorm{dims}d", (4,), {"affine": True}) for dims in (1, 2, 3)),
]


def sample(name: str, dtype: torch.dtype | None) -> Tensor:
    dims = int(name[-2]) if name[-1] == "d" else 0
    shape = (2, 4, *[7] * dims)
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "arguments", "options"), MODULES)
def test_with_quantization_off_it_is_torchs_module(
    name: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    original = getattr(nn, name)(*arguments, **options)
    module = getattr(quant_nn, f"Quant{name}")(*arguments, **options)
    module.load_state_dict(original.state_dict())
    x = sample(name, options.get("dtype"))
    for part in module.modules():
        if isinstance(part, quant_nn.TensorQuantizer):
            part.disable()

    torch.testing.assert_close(module(x), original(x), atol=0, rtol=0)
    assert isinstance(module, type(original))
    assert isinstance(module, getattr(fxq.nn, f"Quant{name}"))


@pytest.mark.parametrize(("name", "arguments", "options"), MODULES)
def test_with_quantization_on_input_and_weight_are_quantized(
    name: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    original = getattr(nn, name)(*arguments, **options)
    module = getattr(quant_nn, f"Quant{name}")(*arguments, **options)
    module.load_state_dict(original.state_dict())
    x = sample(name, options.get("dtype"))
    expected = x.abs().max()
    assert type(module.input_quantizer) is quant_nn.TensorQuantizer
    if hasattr(module, "weight_quantizer"):
        axis = 1 if "Transpose" in name else 0
        others = [dim for dim in range(original.weight.dim()) if dim != axis]
        amax = original.weight.detach().abs().amax(others, keepdim=True)
        with torch.no_grad():
            original.weight.copy_(fxq.fake_tensor_quant(original.weight, amax, narrow_range=False))

    torch.testing.assert_close(module(x), original(fxq.fake_tensor_quant(x, expected, narrow_range=False)))


def test_short_names_are_the_quantized_modules() -> None:
    short = [name for name in quant_nn.__all__ if f"Quant{name}" in quant_nn.__all__]

    assert len(short) == 18
    assert all(getattr(quant_nn, name) is getattr(quant_nn, f"Quant{name}") for name in short)


def test_output_size_of_a_transposed_convolution_is_taken() -> None:
    x = sample("ConvTranspose2d", None)

    assert quant_nn.QuantConvTranspose2d(4, 2, 3, stride=2)(x, output_size=[16, 16]).shape[2:] == (16, 16)


def test_descriptors_come_from_the_call_or_from_the_class() -> None:
    quant_nn.QuantConv2d.set_default_quant_desc_input(QuantDescriptor(calib_method="histogram"))
    quant_nn.QuantConv2d.set_default_quant_desc_weight(QuantDescriptor(num_bits=4))

    module = quant_nn.QuantConv2d(1, 1, 1, quant_desc_weight=QuantDescriptor(num_bits=5, axis=0))

    assert module.input_quantizer.descriptor.calib_method == "histogram"
    assert module.weight_quantizer.num_bits == 5
    assert quant_nn.QuantConv2d(1, 1, 1).weight_quantizer.num_bits == 4
    assert quant_nn.QuantConv1d(1, 1, 1).weight_quantizer.num_bits == 8
    assert fxq.nn.QuantConv2d(1, 1, 1).weight_quantizer.num_bits == 8


def test_float_modules_can_be_taken_over() -> None:
    module = quant_nn.QuantLinear.from_float(nn.Linear(3, 2), input=QuantDescriptor(num_bits=6))

    assert type(module.input_quantizer) is type(module.weight_quantizer) is quant_nn.TensorQuantizer
    assert isinstance(module, _utils.QuantMixin)
    assert isinstance(quant_nn.QuantMaxPool2d(2), _utils.QuantInputMixin)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(DescriptorTypeError, match=r"Unused keys: \['descriptor'\]"):
        quant_nn.QuantLinear(2, 2, descriptor=QuantDescriptor())
    with pytest.raises(DescriptorError, match="Only fake quantization is supported"):
        quant_nn.QuantConv2d(1, 1, 1, quant_desc_weight=QuantDescriptor(fake_quant=False))
    with pytest.raises(ValueError, match="expected a QuantDescriptor"):
        quant_nn.QuantLinear.set_default_quant_desc_input(8)


def test_gradients_pass_straight_through() -> None:
    torch.manual_seed(0)
    module = quant_nn.QuantLinear(4, 3)
    x = torch.randn(2, 4, requires_grad=True)
    quantized = module.quantized_weight().detach()

    module(x).sum().backward()

    expected = torch.autograd.grad(F.linear(x, quantized, module.bias).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)
