"""The passes of an accuracy level in the pipeline: calibrated anew, undone, converted, written, compared."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxq
from fxq.nn import ScaledChannels
from fxq.state import find_state

SPREAD_C = torch.tensor([1.0, 0.1, 0.2, 0.05, 6.0, 0.3, 0.2, 3.0])


class Mobile(nn.Module):
    """An inverted residual: channels before the depthwise convolution differ, as batch norms leave them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.relu1, self.relu2 = nn.ReLU6(), nn.ReLU6()
        self.project, self.up, self.down = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.norm(self.first(x)))
        x = self.project(self.relu2(self.norm2(self.depthwise(x))))
        x = x + self.down(F.relu(self.up(x)))
        return self.fc(x.mean((2, 3)))


class PostNorm(nn.Module):
    """Two transformer blocks whose norms follow the residual."""

    def __init__(self) -> None:
        super().__init__()
        layer = {"d_model": 8, "nhead": 2, "dim_feedforward": 16, "dropout": 0.0, "batch_first": True}
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(**layer) for _ in range(2)))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


def mobile() -> nn.Module:
    torch.manual_seed(0)
    model = Mobile()
    model.norm.weight.data = SPREAD_C.clone()
    model.depthwise.weight.data /= SPREAD_C.reshape(-1, 1, 1, 1)
    model.project.weight.data *= SPREAD_C.reshape(-1, 1, 1, 1)
    model.up.weight.data /= SPREAD_C.reshape(1, -1, 1, 1)
    return model.eval()


def post_norm() -> nn.Module:
    torch.manual_seed(0)
    model = PostNorm()
    for block in model.blocks:
        block.norm1.weight.data = SPREAD_C * 5
        block.linear1.weight.data /= SPREAD_C
    return model.eval()


def images(count: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def tokens(count: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, 8, generator=torch.Generator().manual_seed(seed))


MODELS = {"mobile": (mobile, images), "post_norm": (post_norm, tokens)}
TRT = fxq.recipe("tensorrt")


def at(level: str, recipe: fxq.Recipe = TRT) -> fxq.Recipe:
    """Return the recipe at a level, which trains for a moment where it trains."""
    found = recipe.with_accuracy(level)
    return found.with_pass_options("distill", max_steps=10) if level == "best" else found


@fxq.register_pass("test_fails_behind_the_level")
@dataclass(frozen=True)
class FailsBehindTheLevel(fxq.Pass):
    """Fails when modules were replaced, nodes inserted and weights changed."""

    stage = fxq.Stage.CALIBRATED
    tolerance = fxq.ANY

    def run(self, rw: fxq.Rewriter) -> None:
        raise RuntimeError("stop")


@fxq.register_pass("test_hurts_by_structure")
@dataclass(frozen=True)
class HurtsByStructure(fxq.Pass):
    """Replaces a module, inserts one, gives a layer a bias, and makes all worse."""

    stage = fxq.Stage.CALIBRATED
    tolerance = fxq.ANY
    improves = True

    def run(self, rw: fxq.Rewriter) -> None:
        from fxq.graph import is_weighted, output_edges

        node = rw.nodes(is_weighted)[0]
        rw.replace_module("relu1", nn.Hardtanh(0.0, 0.01), "cut off")
        rw.set_bias(str(node.target), torch.full((8,), 100.0), "too much")
        rw.insert_module_on(output_edges(node), "halved", ScaledChannels(torch.full((8,), 0.5)), "halved")


def prepared(make: Callable[[], nn.Module], data: Callable[..., Tensor], level: str = "best") -> GraphModule:
    return fxq.prepare(make(), data(2), at(level))


def structure(gm: GraphModule) -> list[str]:
    return [str(gm.graph), *(f"{path}: {module!r}" for path, module in gm.named_modules())]


def tensors(gm: GraphModule) -> dict[str, Any]:
    return {path: value.tolist() for path, value in gm.state_dict().items()}


def sqnr(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        wanted = model(x)
        return float(10 * torch.log10(wanted.square().sum() / (wanted - other(x)).square().sum()))


@pytest.mark.parametrize(("make", "data"), MODELS.values(), ids=MODELS.keys())
def test_calibrating_again_starts_anew(make: Callable[[], nn.Module], data: Callable[..., Tensor]) -> None:
    gm, other = prepared(make, data), prepared(make, data)
    fxq.calibrate(gm, [data()])
    first, shape = tensors(gm), structure(gm)
    assert shape != structure(other)  # a bound, or a multiplication
    fxq.calibrate(gm, [data()])
    assert tensors(gm) == first
    assert structure(gm) == shape


@pytest.mark.parametrize(("make", "data"), MODELS.values(), ids=MODELS.keys())
def test_what_calibration_did_is_taken_back(make: Callable[[], nn.Module], data: Callable[..., Tensor]) -> None:
    gm, fresh = prepared(make, data), prepared(make, data)
    fxq.calibrate(gm, [data()])
    plain = find_state(gm).changes.undone(gm)  # type: ignore[union-attr]
    assert str(plain.graph) == str(fresh.graph)
    weights = dict(fresh.named_parameters())
    assert {path: value.tolist() for path, value in plain.named_parameters()} == {
        path: value.tolist() for path, value in weights.items()
    }
    assert not any(isinstance(module, ScaledChannels) for module in plain.modules())
    if make is mobile:
        assert isinstance(plain.get_submodule("relu1"), nn.ReLU6)
        assert not isinstance(gm.get_submodule("relu1"), nn.ReLU6)
    else:
        assert any(isinstance(module, ScaledChannels) for module in gm.modules())  # not a copy of its own


def test_an_undone_pass_leaves_nothing() -> None:
    recipe = TRT.with_accuracy("plain")
    plain, gm = (fxq.prepare(mobile(), images(2), one) for one in (recipe, recipe.with_pass("test_hurts_by_structure")))
    fxq.calibrate(plain, fxq.Data([images()]))
    report = fxq.calibrate(gm, fxq.Data([images()]))
    assert not report.steps[-1].kept
    assert structure(gm)[0] == structure(plain)[0]
    assert gm.get_submodule("first").bias.tolist() == prepared(mobile, images).get_submodule("first").bias.tolist()
    assert isinstance(gm.get_submodule("relu1"), nn.ReLU6)
    changes = find_state(gm).changes  # type: ignore[union-attr]
    assert changes.are_none


@pytest.mark.parametrize(("make", "data"), MODELS.values(), ids=MODELS.keys())
def test_an_exception_half_way_restores_all(make: Callable[[], nn.Module], data: Callable[..., Tensor]) -> None:
    recipe = at("best").with_pass("test_fails_behind_the_level", after="correct_bias")
    gm = fxq.prepare(make(), data(2), recipe)
    before, values = structure(gm), tensors(gm)
    with pytest.raises((RuntimeError, fxq.errors.PassError), match="stop"):
        fxq.calibrate(gm, [data()])
    assert structure(gm) == before
    assert tensors(gm) == values


def test_copies_are_calibrated_and_converted_by_themselves() -> None:
    gm = prepared(post_norm, tokens)
    fxq.calibrate(gm, [tokens()])
    before = tensors(gm)
    copied = copy.deepcopy(gm)
    fxq.calibrate(copied, [tokens(seed=3)])
    assert tensors(gm) == before
    fxq.convert(copied)
    fxq.convert(gm)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("make", "data", "level"), [(mobile, images, "fast"), (post_norm, tokens, "best")], ids=["mobile", "post_norm"]
)
def test_the_file_holds_and_the_model_is_closer_to_the_original(
    make: Callable[[], nn.Module], data: Callable[..., Tensor], level: str, target: str, tmp_path: Path
) -> None:
    model, recipe = make(), fxq.recipe(target)
    plain = fxq.quantize(model, [data()], recipe.with_accuracy("plain"))
    gm = fxq.quantize(model, [data()], at(level, recipe))
    fresh = data(seed=5)
    assert sqnr(model, gm, fresh) > sqnr(model, plain, fresh) + 1
    quality = fxq.explain(gm).quality
    assert quality is not None
    assert quality.against == "the original model"
    fxq.export_onnx(gm, tmp_path / "model.onnx", check=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def test_half_precision(dtype: torch.dtype) -> None:
    for make, data in MODELS.values():
        model = make().to(dtype)
        gm = fxq.prepare(model, data(2).to(dtype), at("best"))
        report = fxq.calibrate(gm, [data(12).to(dtype)])
        assert report.steps[-1].sqnr_after_db is not None
        assert {parameter.dtype for parameter in gm.parameters()} == {dtype}
        assert torch.isfinite(fxq.convert(gm)(data(2).to(dtype))).all()


def test_channels_last_and_batches_of_other_shapes() -> None:
    batches = [images(12), images(8, seed=1)[..., :6], images(20, seed=2)]
    plain = prepared(mobile, images)
    fxq.calibrate(plain, batches)
    gm = prepared(mobile, images)
    fxq.calibrate(gm, [batch.to(memory_format=torch.channels_last) for batch in batches])
    # Convolutions may sum in another order, which can move a code: the result is as good, not the same bit for bit.
    assert sqnr(mobile(), gm, images(seed=5)) == pytest.approx(sqnr(mobile(), plain, images(seed=5)), abs=0.5)


def test_inputs_without_a_batch_dimension() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    batches = list(images(12))
    gm = fxq.prepare(model, batches[0], at("best"))
    fxq.calibrate(gm, fxq.Data(batches, forward=lambda m, x: m(x)))
    assert sqnr(model, gm, images(seed=3)[0]) > 25


def test_one_sample_is_enough_and_nothing_is_held_out() -> None:
    for make, data in MODELS.values():
        gm = prepared(make, data)
        report = fxq.calibrate(gm, [data(1)])
        assert all(step.sqnr_after_db is None for step in report.steps)
        assert "too few to hold any out" in report.notes[0]
        fxq.convert(gm)


def test_a_model_without_anything_to_equalize_takes_a_line_and_no_time() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    gm = fxq.prepare(model, images(2), TRT.with_accuracy("fast"))
    report = fxq.calibrate(gm, [images()])
    assert [step.name for step in report.steps if step.sqnr_after_db is not None] == [
        "equalize_channels", "shift_activations", "refine_ranges", "correct_bias",
    ]  # fmt: skip
    assert str(report).count("equalize_channels") <= 2


def test_a_model_prepared_for_training_is_improved_and_still_trains() -> None:
    gm = fxq.prepare(mobile(), images(2), TRT.with_accuracy("fast"), qat=True)
    fxq.calibrate(gm, [images()])
    gm.train()
    gm(images(4)).square().mean().backward()
    assert all(parameter.grad is not None for path, parameter in gm.named_parameters() if path.endswith("weight"))
    with torch.no_grad():
        for parameter in gm.parameters():
            parameter.sub_(torch.zeros_like(parameter) if parameter.grad is None else 1e-3 * parameter.grad)
    gm.eval()
    trained = tensors(gm)
    assert str(find_state(gm).changes.undone(gm).graph)  # type: ignore[union-attr]
    assert tensors(gm) == trained
    fxq.convert(gm)


class Untraceable(nn.Module):
    """Its backbone traces, itself not."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = mobile()

    def forward(self, x: Tensor) -> Tensor:
        found = self.backbone(x)
        return found * 2 if float(found.sum()) > 1e9 else found


def test_islands() -> None:
    model, x = Untraceable().eval(), images()
    plain, gm = (
        fxq.prepare(model, x[:2], TRT.with_accuracy(level), untraceable="islands") for level in ("plain", "fast")
    )
    fxq.calibrate(plain, x.split(8))
    fxq.calibrate(gm, x.split(8))
    first = tensors(gm)
    assert not isinstance(gm.get_submodule("model.backbone.relu1"), nn.ReLU6)
    fxq.calibrate(gm, x.split(8))
    assert tensors(gm) == first
    assert sqnr(model, fxq.convert(gm), images(seed=5)) > sqnr(model, fxq.convert(plain), images(seed=5)) + 1
    quality = fxq.explain(fxq.convert(gm)).quality
    assert quality is not None
    assert quality.against == "the original model"
