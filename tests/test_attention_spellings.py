"""scaled_dot_product_attention is quantized like the same attention written out."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.spellings import assert_alike, converted
from torch import Tensor, nn
from torch.nn import functional as F

import fxq

HEADS, SIZE = 2, 4
X = torch.randn(2, 5, HEADS * SIZE, generator=torch.Generator().manual_seed(0))
Attend = Callable[..., Tensor]


class Attention(nn.Module):
    """Self-attention with biases from a table, as of positions."""

    def __init__(self, attend: Attend, kv_heads: int = HEADS) -> None:
        super().__init__()
        self.attend, self.kv_heads = attend, kv_heads
        self.q = nn.Linear(HEADS * SIZE, HEADS * SIZE)
        self.k, self.v = (nn.Linear(HEADS * SIZE, kv_heads * SIZE) for _ in range(2))
        self.out = nn.Linear(HEADS * SIZE, HEADS * SIZE)
        self.register_buffer("bias", torch.randn(1, HEADS, 5, 5))
        self.register_buffer("seen", torch.ones(5, 5, dtype=torch.bool).tril(1))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, HEADS, SIZE).transpose(1, 2)
        k, v = (layer(x).view(batch, length, self.kv_heads, SIZE).transpose(1, 2) for layer in (self.k, self.v))
        attended = self.attend(self, q, k, v, *([] if mask is None else [mask]))
        return x + self.out(attended.transpose(1, 2).reshape(batch, length, HEADS * SIZE))


def sdpa(**options: Any) -> Attend:
    def attend(layer: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        given = {name: getattr(layer, value) if name == "attn_mask" else value for name, value in options.items()}
        return F.scaled_dot_product_attention(q, k, v, **({"attn_mask": mask} if mask is not None else {}), **given)

    return attend


def spelled(mask: Callable[[Any, Tensor], Tensor] = lambda _, scores: scores, scale: float | None = None) -> Attend:
    def attend(layer: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if layer.kv_heads < HEADS:
            k, v = (one.unsqueeze(-3).expand(-1, -1, HEADS // layer.kv_heads, -1, -1).flatten(1, 2) for one in (k, v))
        scores = (q * (scale or 1 / math.sqrt(SIZE))) @ k.transpose(-2, -1)
        return torch.softmax(mask(layer, scores), -1) @ v  # type: ignore[no-any-return]

    return attend


def causal(_layer: Any, scores: Tensor) -> Tensor:
    return scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)


WAYS: dict[str, tuple[Attend, Attend, int]] = {
    "plain": (spelled(), sdpa(), 2),
    "no dropout": (spelled(), sdpa(dropout_p=0.0), 2),
    "scale": (spelled(scale=0.3), sdpa(scale=0.3), 2),
    "float mask": (spelled(lambda layer, scores: scores + layer.bias), sdpa(attn_mask="bias"), 2),
    "bool mask": (
        spelled(lambda layer, scores: scores.masked_fill(~layer.seen, -torch.inf)), sdpa(attn_mask="seen"), 2,
    ),
    "causal": (spelled(causal), sdpa(is_causal=True), 2),
    "grouped": (spelled(), sdpa(enable_gqa=True), 1),
}  # fmt: skip


def test_it_gets_the_quantizers_of_the_written_out_attention() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(Attention(first, heads) for first, _, heads in WAYS.values()))
    other = nn.Sequential(*(Attention(second, heads) for _, second, heads in WAYS.values()))
    other.load_state_dict(model.state_dict())
    assert_alike(model, other, X, ["tensorrt", "onnxruntime"])


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_query_that_sees_no_key_attends_to_nothing(dtype: torch.dtype, tmp_path: Any) -> None:
    seen = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    seen[1, :, :, :3] = False
    mask = seen if dtype == torch.bool else torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    torch.manual_seed(0)
    model = Attention(sdpa()).eval()
    _, result = converted(model, (X, mask), "onnxruntime")
    quality = fxq.explain(result).quality
    assert quality is not None
    assert (quality.sqnr_db or 0) > 20
    assert fxq.export_onnx(result, tmp_path / "model.onnx").parity[0].max_lsb <= 1


def test_where_products_stay_in_float_it_stays_whole() -> None:
    model = nn.Sequential(Attention(sdpa())).eval()
    for recipe in (fxq.recipe("weight_only"), fxq.recipe("dynamic"), fxq.recipe("tensorrt").with_rules(("0", None))):
        kinds = [node.kind for node in fxq.explain(fxq.prepare(model, X, recipe=recipe)).nodes]
        assert "attention" in kinds


def test_without_shapes_it_stays_whole_and_says_why() -> None:
    prepared = fxq.prepare(Attention(sdpa()).eval(), None)
    reason = fxq.explain(prepared)["scaled_dot_product_attention"].reason
    assert reason == "the shapes of its inputs are not known; give prepare() example_inputs"


def test_dropout_of_attention_stays_in_training(tmp_path: Any) -> None:
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)

    prepared = fxq.prepare(Drops().eval(), X, qat=True)
    fxq.calibrate(prepared, [X], progress=False)
    assert torch.equal(prepared.eval()(X), prepared(X))
    assert not torch.equal(prepared.train()(X), prepared(X))
    result = fxq.convert(prepared)
    torch.testing.assert_close(result(X), prepared.eval()(X))  # the same in another order
    assert fxq.export_onnx(result, tmp_path / "model.onnx", X).parity[0].max_lsb <= 1
