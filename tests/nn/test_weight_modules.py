"""Quantized convolutions and linear layers: torch.nn's numbers when off, fake-quantized ones when on."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import DescriptorError, InputError
from fxq.nn import QUANTIZED, QuantConv2d, QuantLinear, TensorQuantizer
from fxq.nn.quantized_layer import WeightQuantized
from fxq.quant.affine import fake_tensor_quant
from fxq.quant.descriptor import QuantDescriptor

CONVOLUTION_OPTIONS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1, "bias": False},
    {"padding": "same", "dilation": 2},
    {"padding": "valid", "groups": 2},
    {"padding": 2, "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "replicate", "stride": 2},
    {"padding": 2, "padding_mode": "circular", "groups": 2},
    {"padding": "same", "padding_mode": "reflect"},
    {"dtype": torch.float64},
]
TRANSPOSED_OPTIONS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": 3, "groups": 2, "bias": False},
    {"dilation": 2, "stride": 2, "dtype": torch.float64},
]


def layers() -> list[Any]:
    cases = []
    for rank in (1, 2, 3):
        convolution, transposed = getattr(nn, f"Conv{rank}d"), getattr(nn, f"ConvTranspose{rank}d")
        cases += [(convolution, (4, 6, 3), options) for options in CONVOLUTION_OPTIONS]
        cases += [(transposed, (4, 6, 3), options) for options in TRANSPOSED_OPTIONS]
    cases += [(nn.Linear, (7, 5), {}), (nn.Linear, (7, 5), {"bias": False, "dtype": torch.float64})]
    return [pytest.param(*case, id=f"{case[0].__name__}-{case[2]}") for case in cases]


LAYERS = layers()
each_layer = pytest.mark.parametrize(("float_type", "sizes", "options"), LAYERS)


def inputs_for(module: nn.Module) -> Tensor:
    shape = (2, 7) if isinstance(module, nn.Linear) else (2, 4, *([6] * (module.weight.dim() - 2)))
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(module.weight.dtype)


def by_hand(module: WeightQuantized, x: Tensor) -> Tensor:
    """The float layer on tensors that were fake-quantized outside it."""
    axis = module.weight_quantizer.axis
    reduced = [dim for dim in range(module.weight.dim()) if dim != axis]
    weight = fake_tensor_quant(module.weight, module.weight.abs().amax(reduced, keepdim=True), narrow_range=False)
    return called(module, fake_tensor_quant(x, x.abs().max(), narrow_range=False), weight, module.bias)


def called(module: WeightQuantized, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    function, options = module.as_function()
    before = module.padding_before()
    return function(x if before is None else nn.functional.pad(x, **before), weight, bias, **options)


@each_layer
def test_with_quantization_off_the_numbers_are_those_of_torch(float_type, sizes, options) -> None:
    torch.manual_seed(0)
    expected = float_type(*sizes, **options)
    torch.manual_seed(0)
    module = QUANTIZED[float_type](*sizes, **options)
    assert isinstance(module, float_type)
    module.input_quantizer.disable()
    module.weight_quantizer.disable()
    x = inputs_for(module)
    assert torch.equal(module(x), expected(x))
    assert list(module.state_dict()) == list(expected.state_dict())


@each_layer
def test_with_quantization_on_input_and_weight_are_fake_quantized(float_type, sizes, options) -> None:
    torch.manual_seed(0)
    module = QUANTIZED[float_type](*sizes, **options)
    x = inputs_for(module)
    assert torch.equal(module(x), by_hand(module, x))


@each_layer
def test_from_float_shares_the_parameters_and_leaves_activations_to_the_graph(float_type, sizes, options) -> None:
    torch.manual_seed(0)
    original = float_type(*sizes, **options).eval()
    before = set(vars(original)["_modules"])
    module = QUANTIZED[float_type].from_float(original)
    assert module.weight is original.weight
    assert module.bias is original.bias
    assert module.input_quantizer is None
    assert not any(part.training for part in module.modules())
    x = inputs_for(module)
    assert torch.equal(module(x), called(module, x, module.quantized_weight(), module.bias))
    assert torch.equal(called(module, x, original.weight, original.bias), original(x))
    assert set(vars(original)["_modules"]) == before


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolution_takes_an_output_size(rank: int) -> None:
    torch.manual_seed(0)
    original = getattr(nn, f"ConvTranspose{rank}d")(4, 6, 3, stride=2)
    module = QUANTIZED[type(original)].from_float(original)
    module.weight_quantizer.disable()
    x = inputs_for(module)
    for size in ([14] * rank, [13] * rank):
        assert torch.equal(module(x, output_size=size), original(x, output_size=size))
    with pytest.raises(ValueError, match="output size"):
        module(x, output_size=[20] * rank)


def test_grouped_transposed_weight_has_one_range_per_index_of_dimension_one() -> None:
    module = QUANTIZED[nn.ConvTranspose2d](4, 6, 3, groups=2)
    module.weight_quantizer.enable_calib()
    module.quantized_weight()
    module.weight_quantizer.load_calib_amax()
    params = module.weight_quantizer.qparams()
    assert (params.axis, params.scale.shape) == (1, (3,))


def test_descriptors_given_are_used() -> None:
    given = {"quant_desc_input": QuantDescriptor(num_bits=4), "quant_desc_weight": QuantDescriptor(num_bits=2)}
    module = QuantConv2d(4, 6, 3, **given)
    assert module.input_quantizer.num_bits == 4
    assert module.weight_quantizer.num_bits == 2
    assert module.weight_quantizer.axis is None
    twin = QuantConv2d.from_float(nn.Conv2d(4, 6, 3), QuantDescriptor(num_bits=2), QuantDescriptor(num_bits=4))
    assert (twin.input_quantizer.num_bits, twin.weight_quantizer.num_bits) == (4, 2)
    with pytest.raises(DescriptorError, match="QuantDescriptor"):
        QuantConv2d(4, 6, 3, quant_desc_input="int8")


def test_default_descriptors_are_set_per_class() -> None:
    class Mine(QuantLinear):
        """A class of the user's."""

    Mine.set_default_quant_desc_input(QuantDescriptor(num_bits=4))
    Mine.set_default_quant_desc_weight(QuantDescriptor(num_bits=3, axis=0))
    assert (Mine(2, 2).input_quantizer.num_bits, Mine(2, 2).weight_quantizer.num_bits) == (4, 3)
    assert QuantLinear(2, 2).input_quantizer.num_bits == 8
    assert QuantConv2d.default_quant_desc_weight.axis == 0
    with pytest.raises(DescriptorError):
        Mine.set_default_quant_desc_weight(8)


def test_a_module_of_another_class_is_refused() -> None:
    class Mine(nn.Conv2d):
        """Its forward may differ."""

    for module in (Mine(4, 6, 3), nn.Conv1d(4, 6, 3), nn.ReLU()):
        with pytest.raises(InputError, match=f"exactly Conv2d, got {type(module).__name__}"):
            QuantConv2d.from_float(module)


def test_hooks_and_attributes_come_along() -> None:
    original = nn.Linear(3, 3)
    original.note = "kept"
    calls: list[str] = []
    original.register_forward_hook(lambda *_: calls.append("hook"))
    module = QuantLinear.from_float(original)
    module(torch.ones(1, 3))
    assert (calls, module.note) == (["hook"], "kept")
    module.register_forward_hook(lambda *_: calls.append("later"))
    original(torch.ones(1, 3))
    assert calls == ["hook", "hook"]


def test_unbatched_inputs_and_device_argument() -> None:
    module = QuantConv2d(4, 6, 3, device="cpu", padding="same")
    assert module(torch.ones(4, 5, 5)).shape == (6, 5, 5)
    assert QuantConv2d(4, 6, 3, device="meta").weight.is_meta


def test_state_dict_has_the_keys_of_pytorch_quantization_and_restores() -> None:
    torch.manual_seed(0)
    module = QuantConv2d(4, 6, 3)
    x = inputs_for(module)
    quantizers = [part for part in module.modules() if isinstance(part, TensorQuantizer)]
    for quantizer in quantizers:
        quantizer.enable_calib()
    module(x)
    for quantizer in quantizers:
        quantizer.load_calib_amax()
        quantizer.disable_calib()
    assert list(module.state_dict()) == ["weight", "bias", "_input_quantizer._amax", "_weight_quantizer._amax"]
    other = QuantConv2d(4, 6, 3)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), module(x))


def test_float_state_dict_loads_into_a_module_that_has_no_ranges_yet() -> None:
    original = nn.Conv2d(4, 6, 3)
    module = QuantConv2d(4, 6, 3)
    module.load_state_dict(original.state_dict())
    assert torch.equal(module.weight, original.weight)


def test_gradients_reach_weight_bias_and_input() -> None:
    torch.manual_seed(0)
    module = QuantConv2d(4, 6, 3, padding=1, padding_mode="reflect")
    x = inputs_for(module).requires_grad_()
    module(x).square().sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in (x, module.weight, module.bias))


@pytest.mark.parametrize("options", CONVOLUTION_OPTIONS[:-1], ids=str)
def test_convolutions_export(options) -> None:
    module = QuantConv2d(4, 6, 3, **options).eval()
    x = inputs_for(module)
    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(exported(x), module(x))


def test_mapping_names_each_replaced_type_and_cannot_be_changed() -> None:
    assert all(f"Quant{old.__name__}" == new.__name__ for old, new in QUANTIZED.items())
    assert len(QUANTIZED) == 27
    with pytest.raises(TypeError):
        QUANTIZED[nn.Linear] = QuantConv2d
