"""torch.export as a front end: what torch.fx cannot follow becomes the same graph that torch.fx would make."""

import functools
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import fxq
from fxq.errors import InputError, TraceError
from fxq.frontend.exported import trace_exported

X = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))


def plans(model: nn.Module, x: Tensor, recipe: str, frontend: str) -> Counter[Any]:
    """Return what is quantized how: layers by path, other operations, whose names are a front end's own, by kind."""
    explained = fxq.explain(fxq.prepare(model, x, recipe, frontend=frontend))  # type: ignore[arg-type]
    layers = ("conv", "linear", "multihead_attention", "embedding", "lstm")
    return Counter(
        (
            node.kind,
            node.path if node.kind in layers else "",
            tuple((one.role, one.descriptor) for one in node.quantized),
        )
        for node in explained.nodes
        if node.quantized
    )


SAME = ("squeezenet1_1",)
SLOW = (
    "resnet18", "mnasnet0_5", "mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121", "efficientnet_b0",
    "convnext_tiny", "regnet_y_400mf", "googlenet", "vit_b_16",
)  # fmt: skip


@pytest.mark.parametrize("name", [*SAME, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_both_front_ends_lead_to_the_same_plans(name: str) -> None:
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    x = torch.randn(2, 3, *(224, 224) if name.startswith("vit") else (64, 64))
    for recipe in ("tensorrt", "onnxruntime"):
        assert plans(model, x, recipe, "export") == plans(model, x, recipe, "symbolic")


class Hidden(OrderedDict[str, Any]):
    """An output class like those of transformers."""


pytree.register_pytree_node(
    Hidden, lambda one: (list(one.values()), list(one)), lambda values, keys: Hidden(zip(keys, values, strict=True))
)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


def decorated(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("return_dict", True):
            return forward(self, *args, **kwargs)
        return tuple(forward(self, *args, **kwargs).values())

    return wrapper


class LikeTransformers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 4)
        self.config = {"scale": 2.0}

    @decorated
    def forward(self, x: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Hidden:
        y = self.second(F.gelu(self.first(x)))
        y = y if mask is None else y.masked_fill(mask[..., None], 0.0)
        return Hidden(last=y * self.config["scale"], pooled=y.mean(1))


def test_kwargs_decorators_and_a_class_of_its_own_for_outputs_are_taken() -> None:
    model = LikeTransformers().eval()
    traced = trace_exported(model, (X,))
    result = traced(X)
    assert type(result) is Hidden
    assert [*result] == ["last", "pooled"]
    torch.testing.assert_close(traced(x=X)["last"], model(X)["last"])
    prepared = fxq.prepare(model, {"x": X})
    assert type(prepared(X)) is Hidden
    assert str(fxq.explain(prepared).coverage) == "2 of 2 convolutions and linear layers in int8"


def test_explain_says_which_front_end_and_why() -> None:
    prepared = fxq.prepare(LikeTransformers().eval(), X)
    assert fxq.explain(prepared).traced.startswith("traced by torch.export, for torch.fx cannot follow the model: ")
    assert "traced by torch.export" in str(fxq.explain(prepared))
    assert fxq.explain(fxq.prepare(nn.Linear(4, 4).eval(), X)).traced == ""


def test_the_front_end_can_be_chosen() -> None:
    with pytest.raises(TraceError, match="LikeTransformers"):
        fxq.prepare(LikeTransformers().eval(), X, frontend="symbolic")
    with pytest.raises(InputError, match="'auto', 'symbolic' or 'export', got 'dynamo'"):
        fxq.prepare(nn.Linear(4, 4).eval(), X, frontend="dynamo")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"runs the model: give prepare\(\) example_inputs"):
        fxq.prepare(nn.Linear(4, 4).eval(), frontend="export")


def test_it_is_quantized_calibrated_and_exported(tmp_path: Any) -> None:
    converted = fxq.quantize(LikeTransformers().eval(), [{"x": X, "label": torch.ones(2)}] * 2, progress=False)
    report = fxq.export_onnx(converted, tmp_path / "model.onnx")
    assert [one.name for one in report.parity] == ["last", "pooled"]
    assert report.other_batch_parity


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(4, 4, 2, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, **_: Any) -> Pair:
        y, (hidden, _cell) = self.layer(x)
        return Pair(self.attention(y, y, y, need_weights=False)[0], hidden)


def test_modules_stay_whole_and_recurrent_ones_do_not_unroll() -> None:
    model = Recurrent().eval()
    traced = trace_exported(model, (X,))
    called = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    assert called == ["layer", "attention"]
    longer = torch.randn(3, 21, 4)
    result = traced(longer)
    assert type(result) is Pair
    for found, expected in zip(result, model(longer), strict=True):
        torch.testing.assert_close(found, expected)


class DecidesBySize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return self.layer(x * 2 if x.shape[1] > 5 else x)


def test_a_call_with_sizes_that_python_decides_otherwise_by_is_refused() -> None:
    prepared = fxq.prepare(DecidesBySize().eval(), X, frontend="export")
    assert prepared(torch.randn(7, 6, 4)).shape == (7, 6, 4)
    with pytest.raises(InputError, match=r"traced for sizes with x.shape\[1\] > 5, and is called with x: a tensor"):
        prepared(X[:, :5])


class TakesContainers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, batch: dict[str, Any], scale: float = 1.0, **_: Any) -> dict[str, Any]:
        return {"y": self.layer(batch["x"][0]) * scale, "rest": [batch["x"][1] + batch["z"]]}


def test_containers_of_tensors_are_inputs_and_all_else_is_held_to() -> None:
    model, batch = TakesContainers().eval(), {"x": (X, X + 1), "z": X * 2}
    prepared = trace_exported(model, (batch, 3.0))
    torch.testing.assert_close(prepared(batch, 3.0), model(batch, 3.0))
    with pytest.raises(InputError, match=r"scale = 3\.0, and is called with scale = 2.0"):
        prepared(batch, 2.0)
    with pytest.raises(InputError, match=r"len\(batch\['x'\]\) = 2, and is called with len\(batch\['x'\]\) = 3"):
        prepared({**batch, "x": (X, X, X)}, 3.0)


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.outer = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))
        self.layer.register_forward_hook(doubled)
        self.outer.register_forward_hook(doubled)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return self.outer(self.layer(x))  # type: ignore[no-any-return]


def doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


def test_hooks_count_once() -> None:
    model = Hooked().eval()
    torch.testing.assert_close(trace_exported(model, (X,))(X), model(X))


class Stored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.kept = torch.arange(4.0)
        self.register_buffer("buffer", torch.ones(4), persistent=False)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return self.layer(x + torch.tensor([1.0, 2.0, 3.0, 4.0]) + self.kept + self.buffer)  # type: ignore[no-any-return]


def test_tensors_that_python_holds_or_makes_come_along() -> None:
    model = Stored().eval()
    torch.testing.assert_close(trace_exported(model, (X,))(X), model(X))
    assert "_tensor_constant" not in "".join(name for name, _ in model.named_buffers())


class WritesInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        y = self.relu(self.conv(x))
        y[:, 0] = 0
        y += 1
        return y.clamp_(0, 3)  # type: ignore[no-any-return]


def test_what_is_written_in_place_stays_written() -> None:
    model, x = WritesInPlace().eval(), torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(trace_exported(model, (x,))(x), model(x))


class DecidesByData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        if x.sum() > 0:
            x = x * 2
        return self.layer(x)  # type: ignore[no-any-return]


def test_a_decision_by_data_is_refused_with_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TraceError, match=r"if x.sum\(\) > 0:"):
        fxq.prepare(DecidesByData().eval(), X, frontend="export")
    assert capfd.readouterr() == ("", "")


def test_both_reasons_are_told_where_neither_front_end_can() -> None:
    with pytest.raises(TraceError) as caught:
        fxq.prepare(DecidesByData().eval(), X)
    assert "torch.export was tried as well" in caught.value.__notes__[0]


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "arithmetic": lambda x: (x + 1 - x / 2) * -x**2 // 3 % 2,
    "alpha": lambda x: torch.add(x, x, alpha=2) - torch.div(x, 3, rounding_mode="floor"),
    "comparisons": lambda x: ((x > 0) & (x <= 1) | (x != 2)).float(),
    "items": lambda x: x[:, 1:, ::2] + x[:, -1:, :2] + x[..., 1:, :1] + x[0, :1, :2],
    "indices": lambda x: x[:, torch.tensor([0, 2])] + x[:, [1]],
    "shapes": lambda x: x.view(2, -1).unflatten(1, (9, 4)).transpose(1, 2).flatten(1).unsqueeze(0).expand(3, -1, -1),
    "parts": lambda x: torch.cat([*x.chunk(2, 2)], 1) + torch.stack([*x.split([2, 2], 2)]).sum(0).repeat(1, 2, 1),
    "activations": lambda x: F.leaky_relu(F.elu(x), 0.2) + F.hardtanh(F.silu(x)) + F.gelu(x, approximate="tanh"),
    "softmax": lambda x: F.softmax(x, -1) + x.log_softmax(1) + torch.softmax(x, 0),
    "norms": lambda x: F.layer_norm(x, (4,)) + F.group_norm(x, 3) + F.normalize(x, dim=-1),
    "pools": lambda x: F.max_pool1d(x, 2) + F.avg_pool1d(x, 2) + F.adaptive_avg_pool1d(x, 2),
    "resize": lambda x: F.interpolate(x, scale_factor=2.0) + F.interpolate(x, 8, mode="linear", align_corners=True),
    "pad": lambda x: F.pad(x, (1, 1)) + F.pad(x, (1, 1), value=2.0) + F.pad(x, (1, 1), "reflect"),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "einsum": lambda x: torch.einsum("btc,sc->bts", x, x[0]),
    "products": lambda x: x @ x.transpose(1, 2) @ x + torch.bmm(x, x.mT) @ x,
    "reductions": lambda x: x.mean((1, 2)) + x.amax(1).sum(-1) + x.var(-1).mean(-1),
    "casts": lambda x: x.double().to(x.dtype) + x.to(torch.float16).float() + x.new_ones(4) + torch.arange(4.0),
    "where": lambda x: torch.where(x > 0, x, 0.0) + x.masked_fill(x < 0, -1e4).clamp(-1, 1),
}  # fmt: skip


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize("name", FORMS)
def test_operators_come_back_in_the_words_of_torch(name: str) -> None:
    model = Calls(FORMS[name]).eval()
    traced = trace_exported(model, (X,))
    torch.testing.assert_close(traced(X), model(X))
    left = [node.target for node in traced.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert left == []


def test_a_file_with_open_sizes_says_for_which_the_model_was_traced(tmp_path: Any) -> None:
    converted = fxq.quantize(DecidesBySize().eval(), [X, X], frontend="export", progress=False)
    report = fxq.export_onnx(converted, tmp_path / "model.onnx", dynamic_shapes={"x": {0: "batch", 1: "words"}})
    assert "x.shape[1] > 5" in report.conditions
    assert "traced for sizes with x.shape[1] > 5" in str(report)
    assert fxq.export_onnx(converted, tmp_path / "model.onnx").conditions == ()


class WritesThroughData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.data.mul_(3.0)
        return y


def test_a_write_through_data_is_refused_with_what_to_write() -> None:
    with pytest.raises(TraceError, match=r"in x\.data, .*x\.mul_\(2\)"):
        fxq.prepare(WritesThroughData().eval(), torch.rand(1, 3, 6, 6), frontend="export")
