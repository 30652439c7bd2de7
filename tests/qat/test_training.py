"""Quantization-aware training: a prepared model trains like any other, and what was trained is what is exported."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from support.small import images, residual
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.runtimes import get_runtime

TRT = fxq.recipe("tensorrt")
LEARNED = TRT.replace(
    default=fxq.QConfig(
        activation=fxq.QuantDescriptor(learn_amax=True),
        weight=fxq.QuantDescriptor(num_bits=4, axis=0, learn_amax=True),
    )
)
PACT = fxq.Recipe.from_toml(
    TRT.replace(
        default=fxq.QConfig(
            activation=fxq.QuantDescriptor(learn_amax="pact"),
            weight=fxq.QuantDescriptor(num_bits=4, axis=0, learn_amax="lsq"),
        )
    ).to_toml()
)


class NormFirst(nn.Module):
    """Its batch norm follows an add, so no layer can absorb it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x) + x)
        return self.fc(self.dropout(x.mean((2, 3))))


def ready(model: nn.Module, recipe: fxq.Recipe = TRT) -> GraphModule:
    model.train()
    for seed in range(30):  # the running statistics of a trained model are those of its data
        model(images(16, seed))
    prepared = fxq.prepare(model.eval(), images(2), recipe, qat=True)
    fxq.calibrate(prepared, images(16).split(8))
    return prepared


def step(model: nn.Module, learning_rate: float = 0.05) -> None:
    optimizer = torch.optim.SGD(model.parameters(), learning_rate)
    model(images(8)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("recipe", [TRT, fxq.recipe("onnxruntime"), LEARNED], ids=["int8", "affine", "learned"])
def test_gradients_reach_all_parameters(recipe: fxq.Recipe) -> None:
    prepared = ready(residual(), recipe).train()
    prepared(images(8)).square().sum().backward()
    names = {name for name, parameter in prepared.named_parameters()}
    assert names >= {"conv1.weight", "bn.weight", "bn.bias", "conv2.weight", "conv2.bias", "fc.weight", "fc.bias"}
    for name, parameter in prepared.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0, name


def test_gradients_are_those_of_the_float_model_where_nothing_is_clipped() -> None:
    prepared = ready(residual()).eval()
    for quantizer in prepared.modules():
        if isinstance(quantizer, fxq.TensorQuantizer):
            quantizer.disable_quant()
    x = images(4).requires_grad_()
    exact = torch.autograd.grad(prepared(x).sum(), x)[0]
    for quantizer in prepared.modules():
        if isinstance(quantizer, fxq.TensorQuantizer):
            quantizer.enable_quant()
    through = torch.autograd.grad(prepared(x).sum(), x)[0]
    # A relu that rounding switches changes single entries; the direction stays.
    assert torch.cosine_similarity(exact.flatten(), through.flatten(), dim=0) > 0.98


def test_a_batch_norm_that_stays_behaves_as_torch_says() -> None:
    torch.manual_seed(0)
    prepared = ready(NormFirst().eval())
    assert type(prepared.bn) is nn.BatchNorm2d
    assert not prepared.bn.training
    before = prepared.bn.running_mean.clone()
    prepared.eval()(images(8))
    torch.testing.assert_close(prepared.bn.running_mean, before, rtol=0, atol=0)
    prepared.train()(images(8))
    assert not torch.equal(prepared.bn.running_mean, before)
    assert int(prepared.bn.num_batches_tracked) == 31


def test_dropout_acts_in_training_and_leaves_at_convert(tmp_path: Path) -> None:
    prepared = ready(residual())
    torch.manual_seed(0)
    assert torch.equal(prepared(images(2)), prepared(images(2)))
    prepared.train()
    assert not torch.equal(prepared(images(2)), prepared(images(2)))
    converted = fxq.convert(prepared)
    assert not converted.training
    converted.train()
    assert torch.equal(converted(images(2)), converted(images(2)))
    fxq.export_onnx(converted, tmp_path / "model.onnx")
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert "Dropout" not in nodes


def test_dropout_is_gone_at_once_where_nothing_will_be_trained() -> None:
    prepared = fxq.prepare(residual(), images(2))
    assert not any(isinstance(module, nn.Dropout) for module in prepared.modules())


def test_names_are_the_same_in_every_process_and_the_models_own() -> None:
    first, second = (fxq.prepare(residual(), images(2), qat=True) for _ in range(2))
    for names in ("named_modules", "named_parameters", "named_buffers"):
        listed = [[name for name, _ in getattr(model, names)()] for model in (first, second)]
        assert listed[0] == listed[1]
    assert first.code == second.code
    own, names = set(residual().state_dict()), set(first.state_dict())
    assert own <= names
    assert all(name.endswith("_amax") for name in names - own)


def test_training_works_under_ddp(tmp_path: Path) -> None:
    """DDP wants every parameter to get a gradient, and the same order of names in all processes."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        prepared = ready(residual(), LEARNED).train()
        parallel = nn.parallel.DistributedDataParallel(prepared)
        for _ in range(2):  # the second forward raises if the first left a parameter out
            step(parallel)
        assert all(parameter.grad is not None for parameter in prepared.parameters())
    finally:
        torch.distributed.destroy_process_group()
    fxq.convert(prepared)


@pytest.mark.parametrize("recipe", [TRT, fxq.recipe("onnxruntime"), LEARNED], ids=["int8", "affine", "learned"])
def test_a_state_dict_restores_weights_and_ranges_in_a_fresh_model(recipe: fxq.Recipe, tmp_path: Path) -> None:
    trained = ready(residual(), recipe).train()
    step(trained)
    torch.save(trained.state_dict(), tmp_path / "trained.pt")
    fresh = fxq.prepare(residual(), images(2), recipe, qat=True)
    fresh.load_state_dict(torch.load(tmp_path / "trained.pt", weights_only=True))
    torch.testing.assert_close(fresh(images(4)), trained.eval()(images(4)), rtol=0, atol=0)
    exported = fxq.convert(fresh)(images(4)), fxq.convert(trained)(images(4))
    torch.testing.assert_close(*exported, rtol=0, atol=0)


def test_learned_ranges_are_parameters_that_move_and_are_exported() -> None:
    prepared = ready(residual(), LEARNED).train()
    learned = [name for name, _ in prepared.named_parameters() if name.endswith("_amax")]
    assert len(learned) == 6
    before = {name: prepared.get_parameter(name).detach().clone() for name in learned}
    step(prepared, learning_rate=0.2)
    for name in learned:
        moved, grad = prepared.get_parameter(name).detach(), prepared.get_parameter(name).grad
        torch.testing.assert_close(moved, before[name] - 0.2 * grad)
        assert bool(grad.any()), name
    converted = fxq.convert(prepared)
    for path in ("conv1", "conv2", "fc"):
        moved = prepared.get_parameter(f"{path}_input_quantizer._amax").detach()
        torch.testing.assert_close(converted.get_buffer(f"{path}_input_quantizer.scale"), moved.squeeze() / 127)
        moved = prepared.get_parameter(f"{path}._weight_quantizer._amax").detach().flatten()
        torch.testing.assert_close(converted.get_buffer(f"{path}.weight_scale"), moved / 7)


def test_a_learned_clip_moves_by_what_it_clips_and_is_lowered_as_it_trained() -> None:
    prepared = ready(residual(), PACT).train()
    quantizer = prepared.get_submodule("fc_input_quantizer")
    (clip,) = quantizer.parameters()
    seen: list[Tensor] = []
    hook = quantizer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        clip.fill_(0.1)  # clips
    before = float(clip.detach())
    inputs = images(8)
    outputs = prepared(inputs)
    hook.remove()
    (gradient,) = torch.autograd.grad(outputs.sum(), clip)
    layer: Any = prepared.get_submodule("fc")
    weight = layer.quantized_weight().detach().sum(0)
    clipped = torch.where(seen[0] >= before, 1.0, 0.0)
    torch.testing.assert_close(gradient, (clipped * weight).sum().reshape(1), rtol=1e-4, atol=1e-5)
    step(prepared, 0.01)
    assert float(clip.detach()) != before
    converted = fxq.convert(prepared)
    torch.testing.assert_close(converted.get_buffer("fc_input_quantizer.scale"), clip.detach().squeeze() / 127)
    # A tie may fall to the other side, a step: some of 80 outputs.
    same = torch.isclose(converted(inputs), prepared.eval()(inputs), rtol=1e-4, atol=1e-5)
    assert float(same.float().mean()) > 0.8


@pytest.mark.parametrize(
    "learn",
    [
        pytest.param(False, id="fixed ranges"),
        pytest.param("lsq", id="learned steps, a sample", marks=pytest.mark.slow),
        pytest.param("pact", id="learned clips, a sample", marks=pytest.mark.slow),
    ],
)
def test_training_recovers_accuracy_and_onnx_runtime_has_the_same(
    narrow: dict[str, Any], learn: bool | str, tmp_path: Path
) -> None:
    weight = fxq.QuantDescriptor(num_bits=4, learn_amax="lsq" if learn else False)
    activation = fxq.QuantDescriptor(learn_amax=learn)
    recipe = TRT.replace(default=fxq.QConfig(activation, weight))
    percent, test = narrow["percent"], narrow["test"]
    prepared = fxq.prepare(narrow["model"], test[0][:2], recipe, qat=True)
    fxq.calibrate(prepared, narrow["training"][0][:256].split(64))
    calibrated = percent(prepared, *test)
    torch.manual_seed(0)
    narrow["train"](prepared, *narrow["training"], epochs=2, learning_rate=2e-3)
    trained = percent(prepared, *test)
    converted = fxq.convert(prepared)
    fxq.export_onnx(converted, tmp_path / "digits.onnx")
    assert calibrated < percent(narrow["model"], *test) - 1
    assert trained > calibrated + 1
    # A rounding tie may flip 2 of 1000 digits: ONNX divides by the step, the module multiplies by its inverse.
    assert percent(converted, *test) == pytest.approx(trained, abs=0.21)
    as_written = percent(lambda batch: _run(tmp_path / "digits.onnx", batch, optimize=False), *test)
    assert as_written == pytest.approx(trained, abs=0.21)
    # Its optimizer rounds biases to int32 in steps of input x weight, which are coarse where weights have 4 bits.
    optimized = percent(lambda batch: _run(tmp_path / "digits.onnx", batch, optimize=True), *test)
    assert optimized == pytest.approx(trained, abs=1.0)


def _run(path: Path, batch: Tensor, optimize: bool) -> Tensor:
    return torch.from_numpy(get_runtime("onnxruntime", optimize=optimize).run(path, batch)[0])
