"""The custom modules of pytorch-quantization's tutorial, verbatim, by hand and through fxq's own pipeline.

Source: docs/source/tutorials/creating_custom_quantized_modules.rst of pytorch-quantization 2.2 (Apache-2.0).
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxq
from fxq.compat.pytorch_quantization import nn as quant_nn
from fxq.compat.pytorch_quantization.nn.modules import _utils
from fxq.compat.pytorch_quantization.tensor_quant import QuantDescriptor
from fxq.errors import DescriptorError, DescriptorTypeError

TUTORIAL = '''
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import pooling
from pytorch_quantization.nn.modules import _utils

class QuantMaxPool2d(pooling.MaxPool2d, _utils.QuantInputMixin):
    """Quantized 2D maxpool"""
    def __init__(self, kernel_size, stride=None, padding=0, dilation=1,
                return_indices=False, ceil_mode=False, **kwargs):
        super(QuantMaxPool2d, self).__init__(kernel_size, stride, padding, dilation,
                                            return_indices, ceil_mode)
        quant_desc_input = _utils.pop_quant_desc_in_kwargs(self.__class__, input_only=True, **kwargs)
        self.init_quantizer(quant_desc_input)

    def forward(self, input):
        quant_input = self._input_quantizer(input)
        return super(QuantMaxPool2d, self).forward(quant_input)

    @property
    def input_quantizer(self):
        return self._input_quantizer

class QuantLinear(nn.Linear, _utils.QuantMixin):

    def __init__(self, in_features, out_features, bias=True, **kwargs):
        super(QuantLinear, self).__init__(in_features, out_features, bias)
        quant_desc_input, quant_desc_weight = _utils.pop_quant_desc_in_kwargs(self.__class__, **kwargs)

        self.init_quantizer(quant_desc_input, quant_desc_weight)

    def forward(self, input):
        quant_input = self._input_quantizer(input)
        quant_weight = self._weight_quantizer(self.weight)

        output = F.linear(quant_input, quant_weight, bias=self.bias)

        return output

    @property
    def input_quantizer(self):
        return self._input_quantizer

    @property
    def weight_quantizer(self):
        return self._weight_quantizer
'''
IN_GRAPH = """
test_input = torch.randn(1, 5, 5, 5, dtype=torch.double)

quantizer = TensorQuantizer(quant_nn.QuantLinear.default_quant_desc_input)

quant_input = quantizer(test_input)

out = F.adaptive_avg_pool2d(quant_input, 3)
"""


@pytest.fixture
def custom(alias: None) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    exec(TUTORIAL, scope)
    return scope


class Net(nn.Module):
    """A model with modules of fxq.compat, modules of the tutorial, and a quantizer by hand."""

    def __init__(self, custom: dict[str, Any]) -> None:
        super().__init__()
        self.conv = quant_nn.QuantConv2d(3, 8, 3, padding=1)
        self.pool = custom["QuantMaxPool2d"](2)
        self.conv2 = quant_nn.QuantConv2d(8, 8, 3, padding=1)
        self.residual_quantizer = quant_nn.TensorQuantizer(quant_nn.QuantConv2d.default_quant_desc_input)
        self.average = quant_nn.AdaptiveAvgPool2d(1)
        self.fc = custom["QuantLinear"](8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x).relu())
        x = (self.conv2(x) + self.residual_quantizer(x)).relu()
        return self.fc(self.average(x).flatten(1))


def calibrate_by_hand(model: nn.Module, x: Tensor) -> None:
    quantizers = [module for name, module in model.named_modules() if name.endswith("_quantizer")]
    for quantizer in quantizers:
        quantizer.enable_calib()
        quantizer.disable_quant()
    with torch.no_grad():
        model(x)
    for quantizer in quantizers:
        quantizer.load_calib_amax()
        quantizer.disable_calib()
        quantizer.enable_quant()


def test_custom_modules_quantize_input_and_weight(custom: dict[str, Any]) -> None:
    torch.manual_seed(0)
    linear, x = custom["QuantLinear"](6, 4), torch.randn(3, 6)

    expected = F.linear(
        fxq.fake_tensor_quant(x, x.abs().max(), narrow_range=False),
        fxq.fake_tensor_quant(linear.weight, linear.weight.abs().max(), narrow_range=False),
        linear.bias,
    )

    torch.testing.assert_close(linear(x), expected)
    linear.input_quantizer.disable()
    linear.weight_quantizer.disable()
    torch.testing.assert_close(linear(x), F.linear(x, linear.weight, linear.bias))


def test_custom_pooling_takes_a_descriptor(custom: dict[str, Any]) -> None:
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    pool = custom["QuantMaxPool2d"](2, quant_desc_input=QuantDescriptor(num_bits=4, amax=1.0))

    expected = F.max_pool2d(fxq.fake_tensor_quant(x, 1.0, num_bits=4, narrow_range=False), 2)

    torch.testing.assert_close(pool(x), expected)


def test_class_default_reaches_later_instances_only(custom: dict[str, Any]) -> None:
    before = custom["QuantLinear"](2, 2)
    custom["QuantLinear"].set_default_quant_desc_input(QuantDescriptor(num_bits=5))

    assert custom["QuantLinear"](2, 2).input_quantizer.num_bits == 5
    assert before.input_quantizer.num_bits == 8
    assert _utils.QuantMixin.default_quant_desc_input == QuantDescriptor()


def test_quantizer_in_the_graph_takes_doubles() -> None:
    scope: dict[str, Any] = {"torch": torch, "F": F, "quant_nn": quant_nn, "TensorQuantizer": quant_nn.TensorQuantizer}
    torch.manual_seed(0)

    exec(IN_GRAPH, scope)

    assert scope["out"].dtype == torch.double
    assert (scope["quant_input"] - scope["test_input"]).abs().max() <= scope["test_input"].abs().max() / 127 / 2 * 1.001


def test_layers_without_weight_of_compat_are_made_for_lists_too() -> None:
    class Two(nn.Module, _utils.QuantMixin):
        def __init__(self) -> None:
            super().__init__()
            self.init_quantizer(QuantDescriptor(), QuantDescriptor(axis=0), num_layers=2)

    two = Two()

    assert [len(two._input_quantizers), len(two._weight_quantizers)] == [2, 2]
    assert two._weight_quantizers[1].axis == 0


def test_misuse_is_named(custom: dict[str, Any]) -> None:
    with pytest.raises(DescriptorTypeError, match="Unused keys"):
        custom["QuantLinear"](2, 2, quant_desc_output=QuantDescriptor())
    with pytest.raises(DescriptorError, match="Only fake quantization is supported"):
        custom["QuantLinear"](2, 2, quant_desc_input=QuantDescriptor(fake_quant=False))
    with pytest.raises(ValueError, match="is not an instance of QuantDescriptor"):
        custom["QuantLinear"].set_default_quant_desc_weight("int8")


def test_prepare_respects_all_quantizers_placed_by_hand(custom: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Net(custom).eval(), torch.randn(8, 3, 8, 8)
    calibrate_by_hand(model, x)
    expected = model(x)

    prepared = fxq.prepare(model, x, recipe="tensorrt")
    torch.testing.assert_close(prepared(x), expected, atol=0, rtol=0)
    converted = fxq.convert(prepared)

    # The sums of a dequantized product are added in another order.
    torch.testing.assert_close(converted(x), expected, atol=1e-5, rtol=1e-5)
    fxq.export_onnx(converted, tmp_path / "model.onnx")


def test_calibrate_fits_what_was_placed_by_hand(custom: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Net(custom).eval(), torch.randn(8, 3, 8, 8)
    prepared = fxq.prepare(model, x, recipe="tensorrt")

    fxq.calibrate(prepared, [x], progress=False)

    by_hand = Net(custom).eval()
    by_hand.load_state_dict(model.state_dict(), strict=False)
    calibrate_by_hand(by_hand, x)
    found = {name: tensor for name, tensor in prepared.state_dict().items() if name.endswith("_amax")}
    assert found.keys() == {name for name in by_hand.state_dict() if name.endswith("_amax")}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, by_hand.state_dict()[name])
