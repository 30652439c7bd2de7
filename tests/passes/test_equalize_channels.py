"""equalize_channels: channels of unlike size get a factor each, which the layers around absorb."""

from collections.abc import Callable
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
from fxq.state import find_state

PLAIN = fxq.recipe("tensorrt").replace(calibrator="max")
RECIPE = PLAIN.with_pass("equalize_channels")
SPREAD_C = torch.tensor([1.0, 0.1, 2.0, 0.05, 30.0, 0.5, 1.0, 4.0])


def images(count: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def tokens(count: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, 8, generator=torch.Generator().manual_seed(seed))


def spread(layer: Any, reader: Any, spread_c: Tensor = SPREAD_C) -> None:
    """Plant channels of unlike size between two layers, without changing what the model computes."""
    by_row = spread_c.reshape(-1, *[1] * (layer.weight.dim() - 1))
    by_column = spread_c.reshape(1, -1, *[1] * (reader.weight.dim() - 2)) if reader.weight.shape[1] > 1 else by_row
    if reader.weight.shape[1] == 1:
        by_column = spread_c.reshape(-1, *[1] * (reader.weight.dim() - 1))
    layer.weight.data.mul_(by_row)
    if layer.bias is not None:
        layer.bias.data.mul_(spread_c)
    reader.weight.data.div_(by_column)


def plain_convs() -> nn.Module:
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
    spread(first, last)
    return nn.Sequential(first, nn.ReLU(), last)


def mobile(rectifier: Callable[[], nn.Module] = nn.ReLU6) -> nn.Module:
    torch.manual_seed(0)
    first, depthwise, last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 4, 1)
    spread(first, depthwise, SPREAD_C.clamp(max=5))
    return nn.Sequential(first, rectifier(), depthwise, nn.ReLU(), last)


def residual_stream() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        x = x + m.down(F.relu(m.up(x)))
        return m.last(x)

    torch.manual_seed(0)
    first, up, down, last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 4, 1)
    spread(first, up)
    down.weight.data.mul_(SPREAD_C.reshape(-1, 1, 1, 1))
    down.bias.data.mul_(SPREAD_C)
    last.weight.data.div_(SPREAD_C.reshape(1, -1, 1, 1))
    return Net(forward, first=first, up=up, down=down, last=last)


class WrittenRMSNorm(nn.Module):
    """As language models have it: no module of torch's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), None

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class CastRMSNorm(WrittenRMSNorm):
    """The cast of half precision is no computation in float: ONNX Runtime's placement has integers behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def rms_norm(channels: int) -> nn.Module:
    norm: Any = nn.RMSNorm(channels)
    norm.bias = None
    return norm  # type: ignore[no-any-return]


def pre_norm(make: Callable[[int], nn.Module] = nn.LayerNorm) -> nn.Module:
    torch.manual_seed(0)
    norm, up, down = make(8), nn.Linear(8, 16), nn.Linear(16, 8)
    spread(norm, up)
    return Net(lambda m, x: x + m.down(F.relu(m.up(m.norm(x)))), norm=norm, up=up, down=down)


def post_norm() -> nn.Module:
    """The norm's output is a residual too: nothing before it can absorb the factors."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.norm(m.first(x))
        return m.norm2(x + m.down(F.relu(m.up(x))))

    torch.manual_seed(0)
    norm, up = nn.LayerNorm(8), nn.Linear(8, 16)
    spread(norm, up)
    layers = {"first": nn.Linear(8, 8), "norm": norm, "up": up, "down": nn.Linear(16, 8), "norm2": nn.LayerNorm(8)}
    return Net(forward, **layers)


def calibrated(model: nn.Module, x: Tensor, recipe: fxq.Recipe = RECIPE) -> GraphModule:
    gm = fxq.prepare(model.eval(), x[:2], recipe)
    fxq.calibrate(gm, fxq.Data(x.split(6), held_out=0))
    return gm


def float_outputs(gm: GraphModule, x: Tensor) -> Tensor:
    """Return what the graph computes with its quantizers off, in the weights that it has now."""
    with torch.no_grad(), in_float(gm):
        return gm(x)


def noise(model: nn.Module, gm: GraphModule, x: Tensor) -> float:
    """Return the variance of the error over that of the outputs."""
    with torch.no_grad():
        wanted = model(x)
        return float((wanted - gm(x)).square().mean() / wanted.var())


def entries(gm: GraphModule, kind: str) -> list[str]:
    return [entry.text for entry in find_state(gm).record.of("equalize_channels", kind)]  # type: ignore[union-attr]


MODELS = {
    "convolutions": (plain_convs, images),
    "depthwise": (lambda: mobile(nn.ReLU), images),
    "depthwise with relu6": (mobile, images),
    "residual stream": (residual_stream, images),
    "norm before": (pre_norm, tokens),
    "root mean square": (lambda: pre_norm(rms_norm), tokens),
    "written norm": (lambda: pre_norm(WrittenRMSNorm), tokens),
    "written norm with a cast": (lambda: pre_norm(CastRMSNorm), tokens),
    "norm behind": (post_norm, tokens),
}


@pytest.mark.parametrize(("make", "data"), MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_the_error_falls_and_the_function_stays(
    make: Callable[[], nn.Module], data: Callable[..., Tensor], target: str
) -> None:
    model, x = make().double(), data().double()
    recipe = fxq.recipe(target).replace(calibrator="max")
    plain = calibrated(model, x, recipe)
    gm = calibrated(model, x, recipe.with_pass("equalize_channels"))
    fresh = data(seed=1).double()
    share = 0.85 if make is mobile else 0.4  # its other tensors are as coarse as before
    assert noise(model, gm, fresh) < share * noise(model, plain, fresh)
    # The order of a few float64 products changes; data beyond the calibrated may meet another bound of a ReLU6.
    torch.testing.assert_close(float_outputs(gm, x), model(x).detach(), rtol=1e-9, atol=1e-9)
    assert entries(gm, "edit")


@pytest.mark.parametrize(("make", "data"), MODELS.values(), ids=MODELS.keys())
def test_ranges_fit_the_scaled_tensors(make: Callable[[], nn.Module], data: Callable[..., Tensor]) -> None:
    """Each range is the largest value that its quantizer reads in the scaled float model."""
    x = data()
    gm = calibrated(make(), x)
    quantizers = [(path, one) for path, one in gm.named_modules() if path.endswith("_input_quantizer")]
    reached: dict[nn.Module, float] = {}
    for _, quantizer in quantizers:
        quantizer.register_forward_pre_hook(
            lambda module, inputs: reached.update({module: float(inputs[0].abs().max())})
        )
    float_outputs(gm, x)
    assert reached
    for path, quantizer in quantizers:
        if quantizer in reached:
            assert float(quantizer.amax) == pytest.approx(reached[quantizer], rel=1e-5), path


def test_a_stored_factor_that_is_quantized_is_divided_and_its_range_fits_it_again() -> None:
    """ONNX Runtime multiplies integers: the channels of the factor are as far apart as those of its product."""
    model, x = pre_norm(CastRMSNorm), tokens()
    recipe = fxq.recipe("onnxruntime").replace(calibrator="max")
    plain, gm = (calibrated(model, x, one) for one in (recipe, recipe.with_pass("equalize_channels")))
    (read,) = (node for node in gm.graph.nodes if node.target == "norm.weight")
    (quantizer,) = (str(user.target) for user in read.users)
    weight = gm.get_submodule("norm").weight.detach()
    assert float(weight.max() / weight.min()) < 0.1 * float(SPREAD_C.max() / SPREAD_C.min())
    for one, reached in ((plain, float(SPREAD_C.max())), (gm, float(weight.max()))):
        assert float(one.get_submodule(quantizer).range[1]) == pytest.approx(reached, rel=1e-5)  # type: ignore[index]


def zero_convolution() -> nn.Module:
    """A residual branch that training has not begun to use: its last layer is zero."""
    model: Any = residual_stream()
    model.up.weight.data.mul_(50)
    model.down.weight.data.zero_()
    return model  # type: ignore[no-any-return]


def zero_linear() -> nn.Module:
    model: Any = pre_norm()
    model.up.weight.data.zero_()
    return model  # type: ignore[no-any-return]


def zero_channels() -> nn.Module:
    model: Any = pre_norm()
    model.up.weight.data[:, 2:5] = 0
    model.up.weight.data[3] = 0
    return model  # type: ignore[no-any-return]


ZEROS = {
    "convolution": (zero_convolution, images),
    "linear": (zero_linear, tokens),
    "channels": (zero_channels, tokens),
}


@pytest.mark.parametrize(("make", "data"), ZEROS.values(), ids=ZEROS.keys())
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", "openvino"])
def test_weights_that_are_zero_have_no_say(
    make: Callable[[], nn.Module], data: Callable[..., Tensor], target: str
) -> None:
    model, x = make(), data()
    recipe = fxq.recipe(target).replace(calibrator="max")
    plain = calibrated(model, x, recipe)
    gm = calibrated(model, x, recipe.with_pass("equalize_channels"))
    torch.testing.assert_close(float_outputs(gm, x), model(x).detach(), rtol=1e-4, atol=1e-4)
    assert noise(model, gm, x) < 1.05 * noise(model, plain, x) + 1e-6  # such a branch is a constant: next to no noise


def test_a_relu6_gets_the_bound_of_the_largest_factor() -> None:
    model, x = mobile(), images()
    assert float(model[0](x).detach().max()) > 6
    gm = calibrated(model, x)
    clip = gm.get_submodule("1")
    assert not isinstance(clip, nn.ReLU6)
    with torch.no_grad():
        scale_c = (model[0].weight / gm.get_submodule("0").weight).flatten(1)[:, 0]
        amax_c = model[1](model[0](x)).amax((0, 2, 3)) / scale_c
    assert float(amax_c.max() / amax_c.median()) < 1.3  # one range for all, but for channels that few samples reached
    assert clip.max_val == pytest.approx(6 / float(scale_c.max()), rel=1e-5)
    torch.testing.assert_close(float_outputs(gm, x), model(x).detach(), rtol=1e-4, atol=1e-4)


def test_a_norm_whose_output_is_a_residual_is_multiplied_behind() -> None:
    model, x = post_norm(), tokens()
    gm = calibrated(model, x, PLAIN.with_pass("equalize_channels", most_error=0.0))
    inserted = {path: module for path, module in gm.named_modules() if isinstance(module, ScaledChannels)}
    assert list(inserted) == ["up_input_quantizer_scale"]
    node = next(node for node in gm.graph.nodes if node.target == "up_input_quantizer_scale")
    assert [str(user.target) for user in node.users] == ["up_input_quantizer"]
    factor_c = next(iter(inserted.values())).factor
    torch.testing.assert_close(gm.get_submodule("up").weight * factor_c, model.up.weight, rtol=1e-5, atol=1e-6)


def test_twice_in_a_recipe_each_multiplication_is_one_of_its_own() -> None:
    recipe = PLAIN.with_pass("equalize_channels", most_error=0.0, most_error_of_product=9.0)
    recipe = recipe.with_pass("equalize_channels", most_error=0.0, most_error_of_product=9.0)
    model, x = post_norm().double(), tokens().double()
    gm = calibrated(model, x, recipe)
    assert {"up_input_quantizer_scale", "up_input_quantizer_scale_1"} <= {path for path, _ in gm.named_modules()}
    torch.testing.assert_close(float_outputs(gm, x), model(x).detach(), rtol=1e-9, atol=1e-9)


def gated(activation: Callable[[Tensor], Tensor]) -> nn.Module:
    """No factor passes the activation, and what reads it pads."""
    torch.manual_seed(0)
    first, depthwise, last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 4, 1)
    spread(first, depthwise)
    return Net(
        lambda m, x: m.last(F.relu(m.depthwise(activation(m.first(x))))), first=first, depthwise=depthwise, last=last
    )


FLOAT = {
    "hardswish": F.hardswish,
    "gate": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "shifted": lambda x: F.silu(x) * 1.5 + torch.tensor(0.25),
}


@pytest.mark.parametrize("activation", FLOAT.values(), ids=FLOAT.keys())
def test_what_computes_in_float_is_multiplied_behind(activation: Callable[[Tensor], Tensor]) -> None:
    model, x = gated(activation), images()
    gm = calibrated(model, x, PLAIN.with_pass("equalize_channels", most_error_of_product=0.8))
    inserted = {path: module for path, module in gm.named_modules() if isinstance(module, ScaledChannels)}
    assert list(inserted) == ["depthwise_input_quantizer_scale"]
    assert inserted["depthwise_input_quantizer_scale"].factor.shape == (8, 1, 1)
    torch.testing.assert_close(float_outputs(gm, x), model(x).detach(), rtol=1e-4, atol=1e-4)
    plain = calibrated(model, x, PLAIN)
    assert noise(model, gm, x) < 0.8 * noise(model, plain, x)


def test_an_integer_product_keeps_its_output() -> None:
    recipe = fxq.recipe("onnxruntime").with_pass("equalize_channels", most_error_of_product=0.8)
    gm = calibrated(gated(FLOAT["gate"]), images(), recipe)
    assert not any(isinstance(module, ScaledChannels) for module in gm.modules())


OPTIONS = {
    "least_spread": (mobile, images, {"least_spread": 1000.0}, "times the median one: nothing to gain"),
    "most_error": (plain_convs, images, {"most_error": 0.0}, "no factors bring the error of its readers below"),
    "most_error_of_product": (post_norm, tokens, {"most_error_of_product": 0.0}, "a multiplication would bring"),
}


@pytest.mark.parametrize(("make", "data", "options", "reason"), OPTIONS.values(), ids=OPTIONS.keys())
def test_options_say_what_is_enough(
    make: Callable[[], nn.Module], data: Callable[..., Tensor], options: dict[str, float], reason: str
) -> None:
    acting = calibrated(make(), data())
    options = {"most_error": 0.0, **options}
    gm = fxq.prepare(make().eval(), data()[:2], PLAIN.with_pass("equalize_channels", **options))
    before = {path: value.clone() for path, value in gm.named_parameters()}
    fxq.calibrate(gm, fxq.Data([data()], held_out=0))
    assert any(reason in text for text in entries(gm, "skip"))
    assert not any(reason in text for text in entries(acting, "skip"))
    assert all(torch.equal(before[path], value) for path, value in gm.named_parameters())


def test_samples_are_how_many_positions_it_judges_by(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxq_passes.accuracy import layer_matrix

    counts: list[int] = []
    sample = layer_matrix.LayerMatrix.sample_with_extremes
    monkeypatch.setattr(
        layer_matrix.LayerMatrix,
        "sample_with_extremes",
        lambda self, values, count, seed=0: (counts.append(count), sample(self, values, count, seed))[1],
    )
    calibrated(plain_convs(), images(), PLAIN.with_pass("equalize_channels", samples=32))
    assert counts == [16, 16]  # of each half of the samples


def test_a_channel_that_calibration_did_not_see_active_keeps_its_room() -> None:
    """Where it is active after all, it may be as large as any: a factor made up from nothing would clip it."""
    torch.manual_seed(0)
    first, last = nn.Linear(8, 8), nn.Linear(8, 4)
    spread(first, last)
    with torch.no_grad():
        first.bias[0], last.weight[:, 0] = -100, 1  # and its weights are the largest
    model, x = nn.Sequential(first, nn.ReLU(), last).eval(), tokens()[:, 0]
    plain, gm = calibrated(model, x, PLAIN), calibrated(model, x)
    scale_c = (first.weight[:, 0] / gm.get_submodule("0").weight[:, 0]).detach()
    assert float(scale_c.max() / scale_c.min()) > 3
    room, plain_room = (float(one.get_submodule("2_input_quantizer").amax) for one in (gm, plain))  # type: ignore
    assert room * float(scale_c[0]) >= 0.99 * plain_room


@pytest.mark.parametrize("is_vector", [True, False])
def test_where_a_sample_has_one_value_of_each_channel_the_gain_must_be_large(is_vector: bool) -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(8, 8), nn.Linear(8, 4)
    spread(first, last, torch.tensor([1.0, 0.3, 1.0, 0.3, 1.0, 0.3, 1.0, 0.3]))
    model, x = nn.Sequential(first, last), tokens(64)[:, 0] if is_vector else tokens(64)
    gm = calibrated(model, x)
    assert bool(entries(gm, "edit")) != is_vector
    assert any("one value of each channel" in text for text in entries(gm, "skip")) == is_vector
    asks_less = PLAIN.with_pass("equalize_channels", most_error_of_vector=0.9)
    assert entries(calibrated(model, x, asks_less), "edit")


def test_a_relu6_before_a_layer_that_mixes_channels_is_left_alone() -> None:
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
    spread(first, last)
    gm = calibrated(nn.Sequential(first, nn.ReLU6(), last), images())
    assert entries(gm, "skip") == ["'_1' bounds its channels, and a layer mixes them behind it"]
    assert entries(gm, "edit") == []


def test_depthwise_weights_of_one_range_are_judged_by_the_error() -> None:
    """Equal channels of the input are free only where each channel has a weight range of its own."""
    torch.manual_seed(0)
    first, depthwise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8)
    first.weight.data.mul_(SPREAD_C.reshape(-1, 1, 1, 1))  # and the large ones are what the output consists of
    first.bias.data.mul_(SPREAD_C)
    model, x = nn.Sequential(first, nn.ReLU(), depthwise).eval(), images()
    one_range = PLAIN.replace(default=fxq.QConfig(weight=fxq.QuantDescriptor()))
    plain, gm = calibrated(model, x, one_range), calibrated(model, x, one_range.with_pass("equalize_channels"))
    assert noise(model, gm, x) < 1.05 * noise(model, plain, x)
    assert any("the error of its readers" in text for text in entries(gm, "skip") + entries(gm, "edit"))


def test_a_range_that_is_given_is_left_alone() -> None:
    fixed = fxq.QConfig(activation=fxq.QuantDescriptor(amax=30.0))
    gm = calibrated(plain_convs(), images(), RECIPE.with_rules(("2", fixed)))
    assert entries(gm, "edit") == []
    assert entries(gm, "skip") == ["its channels are not scaled: the range of '_2_input_quantizer' is given"]


def test_a_model_without_anything_to_scale_costs_no_walk() -> None:
    gm = fxq.prepare(nn.Sequential(nn.Linear(8, 4)).eval(), tokens()[:2], RECIPE)
    report = fxq.calibrate(gm, [tokens()])
    assert report.steps[-1].kept
    assert entries(gm, "edit") == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def test_half_precision_is_searched_in_float(dtype: torch.dtype) -> None:
    model, x = plain_convs().to(dtype), images().to(dtype)
    assert entries(calibrated(model, x), "edit")
    assert noise(model, calibrated(model, x), x) < 0.5 * noise(model, calibrated(model, x, PLAIN), x)


def test_a_bound_is_left_alone_where_the_layer_reads_means_of_what_it_lets_through() -> None:
    """The channels of the means say nothing of how far single values reach."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
    with torch.no_grad():
        first.weight[0] *= 50
    model = nn.Sequential(first, nn.ReLU6(), nn.AvgPool2d(2), last)
    gm = calibrated(model, images())
    assert isinstance(gm.get_submodule("1"), nn.ReLU6)
