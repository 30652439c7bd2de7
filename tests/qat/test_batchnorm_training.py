"""Batch norms fold in each step of training: float numbers where nothing is quantized, the deployed ones elsewhere."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.nn import BatchNormFolded

LAYERS: dict[str, Any] = {
    "conv1d": lambda: (nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6), (4, 4, 7)),
    "conv2d, grouped, reflected": lambda: (
        nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="reflect", bias=False),
        nn.BatchNorm2d(6),
        (4, 4, 7, 7),
    ),
    "conv2d, same": lambda: (nn.Conv2d(4, 6, 3, padding="same", dilation=2), nn.BatchNorm2d(6), (4, 4, 7, 7)),
    "conv3d": lambda: (nn.Conv3d(2, 6, 2, stride=2), nn.BatchNorm3d(6, eps=1e-2), (4, 2, 4, 4, 4)),
    "transposed, grouped": lambda: (
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, output_padding=1),
        nn.BatchNorm2d(6),
        (4, 4, 5, 5),
    ),
    "transposed 1d": lambda: (nn.ConvTranspose1d(4, 6, 2, bias=False), nn.BatchNorm1d(6), (4, 4, 5)),
    "linear": lambda: (nn.Linear(5, 6), nn.BatchNorm1d(6), (16, 5)),
    "not affine": lambda: (nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, affine=False), (4, 4, 5, 5)),
    "cumulative": lambda: (nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, momentum=None), (4, 4, 5, 5)),
}


def pair(name: str) -> tuple[nn.Sequential, Tensor]:
    """Return a layer and its batch norm, with a trained model's statistics and signs of gamma, and inputs for it."""
    torch.manual_seed(0)
    layer, norm, shape = LAYERS[name]()
    x = torch.randn(shape)
    model = nn.Sequential(layer, norm).train()
    for _ in range(40):
        model(x + 0.1 * torch.randn(shape))
    if norm.affine:
        norm.weight.data.uniform_(-1, 1)
        norm.bias.data.normal_()
    return model.eval(), x


def quantizers(model: nn.Module) -> list[fxq.TensorQuantizer]:
    return [module for module in model.modules() if isinstance(module, fxq.TensorQuantizer)]


def ready(model: nn.Module, x: Tensor, recipe: Any = "tensorrt") -> GraphModule:
    prepared = fxq.prepare(model, x, recipe, qat=True)
    fxq.calibrate(prepared, [x], progress=False)
    return prepared


def four_bits(**weight: Any) -> fxq.Recipe:
    config = fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, **weight))
    return fxq.recipe("tensorrt").replace(default=config)


@pytest.mark.parametrize("name", LAYERS)
def test_without_quantizing_training_is_the_float_models(name: str) -> None:
    model, x = pair(name)
    prepared = ready(model, x)
    assert [node.target for node in prepared.graph.nodes if node.op == "call_module"] == ["0_input_quantizer", "0"]
    for quantizer in quantizers(prepared):
        quantizer.disable()
    torch.testing.assert_close(prepared(x), model(x), rtol=1e-4, atol=1e-5)
    outputs = {}
    for trained in (prepared.train(), copy.deepcopy(model).train()):
        optimizer = torch.optim.SGD(trained.parameters(), 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            outputs[trained] = trained(x)
            (outputs[trained] * torch.linspace(-1, 1, x.shape[0]).reshape(-1, *[1] * (x.dim() - 1))).sum().backward()
            optimizer.step()
    (ours, y), (theirs, expected) = outputs.items()
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-4)
    found = ours.state_dict()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("axis", [0, None], ids=["per channel", "per tensor"])
def test_evaluation_is_what_is_converted(name: str, axis: int | None) -> None:
    model, x = pair(name)
    prepared = ready(model, x, four_bits(axis=axis)).train()
    optimizer = torch.optim.SGD(prepared.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        prepared(x).square().mean().backward()
        optimizer.step()
    converted = fxq.convert(prepared)  # straight after a step: ranges follow the weight that it left
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in converted.modules())
    torch.testing.assert_close(converted(x), prepared.eval()(x), rtol=1e-5, atol=1e-6)


def test_training_computes_what_the_folded_weight_does() -> None:
    """Of a weight with one range, folding before quantizing is not the same as quantizing before folding."""
    model, x = pair("conv2d, same")
    prepared = ready(model, x, four_bits(axis=None)).train()
    norm, layer = prepared.get_submodule("1"), prepared.get_submodule("0")
    scale_c = (model[1].weight / torch.sqrt(model[1].running_var + model[1].eps)).detach()
    folded = model[0].weight.detach() * scale_c.reshape(-1, 1, 1, 1)
    step = folded.abs().max() / 7
    weight = torch.round(folded / step) * step / scale_c.reshape(-1, 1, 1, 1)
    x = prepared.get_submodule("0_input_quantizer")(x)
    outputs = layer._conv_forward(x, weight, model[0].bias)
    expected = nn.functional.batch_norm(outputs, None, None, model[1].weight, model[1].bias, training=True)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    mean_c = 0.9 * model[1].running_mean + 0.1 * outputs.mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, mean_c, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, None], ids=["per channel", "per tensor"])
def test_a_channel_that_gamma_switches_off_makes_no_nan(axis: int | None) -> None:
    model, x = pair("conv2d, same")
    model[1].weight.data[0] = 0
    prepared = ready(model, x, four_bits(axis=axis)).train()
    for _ in range(3):
        prepared(x).square().mean().backward()
    assert all(
        bool(parameter.grad.isfinite().all()) for parameter in prepared.parameters() if parameter.grad is not None
    )
    assert all(bool(value.isfinite().all()) for value in prepared.state_dict().values())
    if axis == 0:  # its own range keeps its statistics those of the float model
        float_model = copy.deepcopy(model).train()
        for _ in range(3):
            float_model(x)
        torch.testing.assert_close(
            prepared.get_buffer("1.running_var"), float_model[1].running_var, rtol=0.1, atol=1e-3
        )
    prepared.eval()
    torch.testing.assert_close(prepared(x)[:, 0], model[1].bias[0].detach().expand_as(prepared(x)[:, 0]))


def test_a_shared_layer_with_one_batch_norm_normalizes_each_call_by_itself() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(self.norm(self.conv(x)).relu()))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(4, 3, 6, 6)
    prepared = ready(model, x)
    for quantizer in quantizers(prepared):
        quantizer.disable()
    torch.testing.assert_close(prepared.train()(x), model.train()(x), rtol=1e-4, atol=1e-5)
    assert int(prepared.get_buffer("norm.num_batches_tracked")) == 2


def test_copies_and_pickles_hold_one_batch_norm() -> None:
    model, x = pair("conv2d, same")
    prepared = ready(model, x).train()
    file = io.BytesIO()
    torch.save(prepared, file)
    file.seek(0)
    # A whole module, written two lines above: weights_only=True could not read it.
    for copied in (copy.deepcopy(prepared), torch.load(file, weights_only=False)):
        layer = copied.get_submodule("0")
        assert isinstance(layer, BatchNormFolded)
        assert layer.batch_norm is copied.get_submodule("1")
        copied.eval()(x)
        assert int(copied.get_buffer("1.num_batches_tracked")) == 40
        torch.testing.assert_close(copied(x), copy.deepcopy(prepared).eval()(x), rtol=0, atol=0)


def test_batch_norm_before_a_rectified_layer_stays_as_it_is() -> None:
    """DenseNet's order: the batch norm trains as in float, and nothing is folded."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)).eval(), torch.randn(4, 3, 6, 6)
    prepared = ready(model, x)
    assert type(prepared.get_submodule("0")) is nn.BatchNorm2d
    prepared.train()(x)
    assert int(prepared.get_buffer("0.num_batches_tracked")) == 1


@pytest.mark.parametrize("wanted", ["0", "*"], ids=["its layer", "everything"])
def test_a_layer_left_in_float_trains_with_its_batch_norm(wanted: str) -> None:
    model, x = pair("conv2d, same")
    with pytest.warns(UserWarning, match="nothing was quantized"):
        prepared = fxq.prepare(model, x, fxq.recipe("tensorrt").with_rules((wanted, None)), qat=True)
    torch.testing.assert_close(prepared.train()(x), copy.deepcopy(model).train()(x), rtol=1e-4, atol=1e-5)
    converted = fxq.convert(prepared)
    torch.testing.assert_close(converted(x), prepared.eval()(x))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())


def test_it_is_explained() -> None:
    model, x = pair("linear")
    assert "computed by folding its batch norm from weight, running statistics" in repr(fxq.explain(ready(model, x)))
