from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.graph import graph_text
from fxq.nn import WeightQuantized
from fxq.testing import assert_rewrites
from fxq_passes import FreezeRanges, LowerToQdq

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def calibrated(model: nn.Module, *inputs: Any, recipe: str | fxq.Recipe = "tensorrt") -> GraphModule:
    gm = fxq.prepare(model.eval(), inputs or X, recipe=recipe)
    fxq.calibrate(gm, [inputs or X], progress=False)
    return gm


def assert_within_a_step(converted: GraphModule, prepared: GraphModule, *inputs: Any) -> None:
    """Compare with the fake-quantized model: a value between two codes may round the other way, once a layer."""
    with torch.no_grad():
        found, expected = converted(*(inputs or (X,))), prepared(*(inputs or (X,)))
    step = float(expected.abs().max()) / 127
    torch.testing.assert_close(found, expected, rtol=0, atol=2 * step)
    assert float((found - expected).abs().mean()) < 0.05 * step  # such values are few


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_a_quantizer_becomes_a_quantize_and_a_dequantize() -> None:
    assert_rewrites(
        [FreezeRanges(), LowerToQdq()],
        model=nn.Sequential(fxq.TensorQuantizer(fxq.QuantDescriptor(amax=2.54)), nn.ReLU()),
        inputs=X,
        before="""
            input_1 = input
            _0 = TensorQuantizer[0](input_1)
            _1 = ReLU[1](_0)
            return _1
        """,
        after="""
            input_1 = input
            _0_scale = self.0.scale
            _0_zero_point = self.0.zero_point
            quantize_default = quantize(input_1, _0_scale, _0_zero_point, None, -128, 127, torch.int8)
            dequantize_default = dequantize(quantize_default, _0_scale, _0_zero_point, None, torch.float32)
            _1 = ReLU[1](dequantize_default)
            return _1
        """,
    )


def test_a_quantizer_that_is_off_leaves_nothing_behind() -> None:
    off = fxq.TensorQuantizer(fxq.QuantDescriptor(amax=2.54), disabled=True)
    assert_rewrites(
        [FreezeRanges(), LowerToQdq()],
        model=nn.Sequential(off, nn.ReLU()),
        inputs=X,
        after="""
            input_1 = input
            _1 = ReLU[1](input_1)
            return _1
        """,
    )


def test_a_layer_becomes_integers_behind_a_dequantize() -> None:
    converted = fxq.convert(calibrated(Net()))
    assert graph_text(converted) == "\n".join([
        "x = input",
        "conv_input_quantizer_scale = self.conv_input_quantizer.scale",
        "conv_input_quantizer_zero_point = self.conv_input_quantizer.zero_point",
        "quantize_default = quantize(x, conv_input_quantizer_scale, conv_input_quantizer_zero_point, None, "
        "-128, 127, torch.int8)",
        "dequantize_default = dequantize(quantize_default, conv_input_quantizer_scale, "
        "conv_input_quantizer_zero_point, None, torch.float32)",
        "conv_weight = self.conv.weight",
        "conv_weight_scale = self.conv.weight_scale",
        "conv_weight_zero_point = self.conv.weight_zero_point",
        "dequantize_default_1 = dequantize(conv_weight, conv_weight_scale, conv_weight_zero_point, 0, "
        "torch.float32)",
        "conv_bias = self.conv.bias",
        "conv = conv2d(dequantize_default, dequantize_default_1, conv_bias, stride=(1, 1), dilation=(1, 1), "
        "groups=1, padding=(0, 0))  # input 0: int8 per tensor",
        "return conv",
    ])  # fmt: skip
    assert converted.get_buffer("conv.weight").dtype == torch.int8


MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding="valid", groups=2), (2, 4, 9, 9)),
    "conv3d": (nn.Conv3d(4, 6, 3, padding="same"), (2, 4, 5, 5, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5, 5)),
    "transposed groups": (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "linear": (nn.Linear(4, 6, bias=False), (2, 4)),
}


@pytest.mark.parametrize(("layer", "shape"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_every_layer_computes_what_its_fake_quantized_self_does(
    layer: nn.Module, shape: tuple[int, ...], target: str
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    prepared = calibrated(nn.Sequential(layer, nn.ReLU()), x, recipe=target)
    assert_within_a_step(fxq.convert(prepared), prepared, x)


def test_the_places_of_stored_tensors_are_in_the_mode_of_the_model() -> None:
    converted = fxq.convert(calibrated(Net()))
    assert not [path for path, module in converted.named_modules() if module.training]


def test_an_integer_bias_counts_in_input_step_times_weight_step() -> None:
    prepared = calibrated(Net(), recipe="onnxruntime")
    converted = fxq.convert(prepared)
    bias = prepared.get_submodule("conv").bias
    assert isinstance(bias, Tensor)
    step = converted.get_buffer("conv_input_quantizer.scale") * converted.get_buffer("conv.weight_scale")
    torch.testing.assert_close(converted.get_buffer("conv.bias_scale"), step, rtol=0, atol=0)
    codes = converted.get_buffer("conv.bias")
    assert codes.dtype == torch.int32
    torch.testing.assert_close(codes * step, bias.detach(), rtol=0, atol=float(step.max()) / 2)


def test_a_channel_of_next_to_no_weight_leaves_its_bias_room_in_32_bits() -> None:
    model = Net()
    with torch.no_grad():
        model.conv.weight[0] = 1e-6
        model.conv.bias[0] = 5.0  # type: ignore[index]
    prepared = calibrated(model, recipe="onnxruntime")
    converted = fxq.convert(prepared)
    codes = converted.get_buffer("conv.bias")
    assert codes.dtype == torch.int32
    assert codes.abs().max() <= 2**30  # the other half is for the sum of products
    assert_within_a_step(converted, prepared)


def test_the_bias_stays_float_where_the_target_wants_it() -> None:
    assert fxq.convert(calibrated(Net())).get_buffer("conv.bias").dtype == torch.float32


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_tied_weights_are_stored_once(target: str) -> None:
    prepared = calibrated(Tied(), recipe=target)
    converted = fxq.convert(prepared)
    stored = [name for name, value in converted.named_buffers() if value.dtype == torch.int8 and value.dim() == 4]
    assert stored == ["a.weight"]
    assert_within_a_step(converted, prepared)


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.conv(x)))


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_a_layer_called_twice_keeps_one_weight_and_has_a_bias_a_call(target: str) -> None:
    prepared = calibrated(Twice(), recipe=target)
    converted = fxq.convert(prepared)
    names = [name for name, _ in converted.named_buffers() if name.startswith("conv.")]
    biases = [name for name in names if name.rpartition(".")[2] in ("bias", "bias_1")]
    assert biases == (["conv.bias", "conv.bias_1"] if target == "onnxruntime" else ["conv.bias"])
    assert names.count("conv.weight") == 1
    assert_within_a_step(converted, prepared)


@pytest.mark.parametrize("in_float", ["conv_input_quantizer", "conv_input_quantizer_1"])
def test_a_layer_that_one_call_gives_floats_has_its_float_bias_beside(in_float: str) -> None:
    prepared = calibrated(Twice(), recipe="onnxruntime")
    prepared.get_submodule(in_float).disable()
    converted = fxq.convert(prepared)
    biases = {converted.get_buffer(name).dtype for name in ("conv.bias", "conv.bias_1")}
    assert biases == {torch.float32, torch.int32}
    assert_within_a_step(converted, prepared)


class OutputSize(nn.Module):
    """A transposed convolution that is told its output's size, as a list or from another tensor's shape."""

    def __init__(self, follows: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.follows, self.up = follows, nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        return self.up(x, output_size=like.shape[2:]) if self.follows else self.up(x, [12, 12])


@pytest.mark.parametrize("follows", [False, True], ids=["list", "shape"])
def test_an_output_size_becomes_an_output_padding(follows: bool) -> None:
    inputs = (X, torch.zeros(2, 4, 12, 12))
    prepared = calibrated(OutputSize(follows), *inputs)
    converted = fxq.convert(prepared)
    assert converted(*inputs).shape == (2, 4, 12, 12)
    assert_within_a_step(converted, prepared, *inputs)


def test_an_output_size_without_shapes_is_an_error_with_the_cure() -> None:
    prepared = fxq.prepare(OutputSize(follows=False).eval())
    fxq.calibrate(prepared, [(X, X)], progress=False, forward=lambda model, batch: model(*batch))
    with pytest.raises(
        fxq.GraphError, match=r"'up' is called with an output_size: give fxq.prepare\(\) example_inputs"
    ):
        fxq.convert(prepared)


def test_an_activation_quantizer_that_the_user_disabled_leaves_the_tensor_in_float() -> None:
    for switch in ("disable", "disable_quant"):
        prepared = calibrated(Net())
        getattr(prepared.get_submodule("conv_input_quantizer"), switch)()
        converted = fxq.convert(prepared)
        assert " quantize(" not in graph_text(converted)
        assert_within_a_step(converted, prepared)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_a_weight_quantizer_that_the_user_disabled_leaves_the_weight_in_float(target: str) -> None:
    prepared = calibrated(Net(), recipe=target)
    layer = prepared.get_submodule("conv")
    assert isinstance(layer, WeightQuantized)
    layer.weight_quantizer.disable()
    converted = fxq.convert(prepared)
    assert converted.get_buffer("conv.weight").dtype == torch.float32
    assert_within_a_step(converted, prepared)


BY_HAND: dict[str, nn.Module] = {
    "quantizer": nn.Sequential(fxq.TensorQuantizer(), nn.ReLU()),
    "layer": nn.Sequential(fxq.nn.QuantConv2d(4, 4, 1), nn.ReLU()),
    "layer and quantizer": nn.Sequential(nn.ReLU(), fxq.TensorQuantizer(), nn.Conv2d(4, 4, 1)),
    "pooling": nn.Sequential(fxq.nn.QuantMaxPool2d(2), nn.ReLU()),
}


@pytest.mark.parametrize("model", BY_HAND.values(), ids=BY_HAND)
def test_what_is_quantized_by_hand_is_lowered_too(model: nn.Module) -> None:
    prepared = calibrated(model)
    converted = fxq.convert(prepared)
    assert " quantize(" in graph_text(converted)
    assert_within_a_step(converted, prepared)


def test_a_layer_that_quantizes_inside_is_an_error_with_the_cure() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = fxq.nn.QuantLSTM(4, 4)

        def forward(self, x: Tensor) -> Any:
            return self.lstm(x)[0]

    prepared = calibrated(Recurrent(), torch.randn(3, 2, 4))
    for quantizer in prepared.modules():
        if isinstance(quantizer, fxq.TensorQuantizer) and not quantizer.has_range:
            quantizer.amax = torch.tensor(1.0)
    with pytest.raises(fxq.GraphError, match=r"'lstm' \(QuantLSTM\) quantizes its hidden state.*recipe"):
        fxq.convert(prepared)
