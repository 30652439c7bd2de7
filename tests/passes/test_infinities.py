"""Values that hold infinity: padding in front of max poolings, masks in front of softmax."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq

LOWEST = torch.finfo(torch.float32).min
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
WORDS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def as_function(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1, 0, 1), value=-torch.inf)


class SamePool(nn.Module):
    """Max pooling as TensorFlow pads it, on the residual side of an add (timm's NASNet)."""

    def __init__(self, pad: Any) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return F.max_pool2d(self.pad(x), 3, 2) + self.body(x)


PADS = {"function": as_function, "module": nn.ConstantPad2d((0, 1, 0, 1), -torch.inf)}


@pytest.mark.parametrize("recipe", ["tensorrt", "onnxruntime", "openvino"])
@pytest.mark.parametrize("pad", PADS.values(), ids=PADS)
def test_a_pool_behind_padding_with_infinity_is_quantized_around(recipe: str, pad: Any) -> None:
    model = SamePool(pad).eval()
    converted = fxq.quantize(model, [IMAGES], recipe=recipe)
    assert fxq.explain(converted)["body"].is_quantized
    assert F.mse_loss(converted(IMAGES), model(IMAGES)) < 1e-3  # 8 bits of values near 1


def test_the_pool_says_why_it_has_no_quantizer_and_the_residual_keeps_its_own() -> None:
    explained = fxq.explain(fxq.prepare(SamePool(as_function).eval(), IMAGES))
    assert explained["max_pool2d"].reason == "reads infinity, which 'pad' puts among its values: no range holds it"
    assert explained.counts["residual"] == 1


class Masked(nn.Module):
    """Scores that are masked, and then get a bias."""

    def __init__(self, mask: Any) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("minus", torch.full((5, 5), -torch.inf).triu(1))
        self.register_buffer("bias", torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        scores = self.mask(self, x @ self.key(x).transpose(1, 2))
        return F.softmax(scores, -1) @ self.value(x)


MASKS: dict[str, Any] = {
    "two additions": lambda net, scores: scores + net.minus + net.bias,
    "bias with the mask in it": lambda net, scores: scores + (net.minus + net.bias),
    "lowest number": lambda net, scores: scores + scores.new_full((5, 5), LOWEST).triu(1) + net.bias,
    "masked_fill": lambda net, scores: scores.masked_fill(net.minus < 0, -torch.inf) * net.bias.abs() + net.bias,
    "where": lambda net, scores: torch.where(net.minus < 0, LOWEST, scores) * net.bias.abs() + net.bias,
}


@pytest.mark.parametrize("recipe", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masked_scores_stay_in_float_until_their_softmax(recipe: str, mask: Any) -> None:
    model = Masked(mask).eval()
    converted = fxq.quantize(model, [WORDS], recipe=recipe)
    assert fxq.explain(converted)["matmul"].is_quantized
    assert F.mse_loss(converted(WORDS), model(WORDS)) < 1e-3  # 8 bits of values near 1


def test_an_addition_that_something_else_reads_too_is_quantized() -> None:
    class Read(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Any:
            added = x + y
            return F.softmax(added + y, -1), added.relu()

    explained = fxq.explain(fxq.prepare(Read().eval(), (WORDS, WORDS), recipe="onnxruntime"))
    assert explained["add"].is_quantized
    assert explained["add_1"].reason == "adds a mask before a softmax, which may hold minus infinity"


def test_a_weight_that_holds_infinity_is_an_error_and_not_left_in_float() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.inf
    with pytest.raises(fxq.errors.FxqError, match="infinity"):
        fxq.quantize(model.eval(), [WORDS])
