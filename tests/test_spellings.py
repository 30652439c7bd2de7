"""Sums and products that are spelled in another way are quantized like the usual spelling."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.spellings import assert_alike
from torch import Tensor, nn
from torch.nn import functional as F

IMAGES = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


class Sums(nn.Module):
    """Two convolutions and what ``how`` makes of their results and the input."""

    def __init__(self, how: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.fc, self.how = nn.Linear(4, 4), how

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.fc(torch.relu(self.how(self.second(x), x, x.transpose(2, 3))).mean((2, 3)))


SUMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "add alpha": (lambda a, b, _: a + b * 0.5, lambda a, b, _: torch.add(a, b, alpha=0.5)),
    "add_ alpha": (lambda a, b, _: a + b * 2, lambda a, b, _: a.add_(b, alpha=2)),
    "sub alpha": (lambda a, b, _: a - b * 0.5, lambda a, b, _: torch.sub(a, b, alpha=0.5)),
    "subtract": (lambda a, b, _: a - b * 3, lambda a, b, _: a.subtract(b, alpha=3)),
    "stack": (lambda a, b, c: a + b + c, lambda a, b, c: torch.stack([a, b, c]).sum(0)),
    "stack dim": (lambda a, b, _: a + b, lambda a, b, _: torch.stack((a, b), dim=-1).sum(dim=4)),
    "torch.sum": (lambda a, b, _: a + b, lambda a, b, _: torch.sum(torch.stack((a, b), 1), (1,))),
    "sum": (lambda a, b, _: a + b, lambda a, b, _: sum([a, b])),
}  # fmt: skip


@pytest.mark.parametrize(("spelled", "other"), SUMS.values(), ids=SUMS)
def test_sums(spelled: Any, other: Any) -> None:
    torch.manual_seed(0)
    model, second = Sums(spelled), Sums(other)
    second.load_state_dict(model.state_dict())
    assert_alike(model, second, IMAGES, ["tensorrt"])


class Usual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.gelu(self.a(x)))


class Stored(nn.Module):
    """The same with matrices as GPT-2 stores them: (in, out)."""

    def __init__(self, how: Callable[[Tensor, Tensor, Tensor], Tensor], usual: Usual) -> None:
        super().__init__()
        self.how = how
        for name, layer in usual.named_children():
            setattr(self, name, nn.Module())
            getattr(self, name).weight = nn.Parameter(layer.weight.detach().t().clone())  # type: ignore[operator]
            getattr(self, name).bias = nn.Parameter(layer.bias.detach().clone())  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a, self.b
        return self.how(F.gelu(self.how(x, a.weight, a.bias)), b.weight, b.bias)  # type: ignore[arg-type]


def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x.view(-1, x.size(-1)), weight).view(*x.shape[:-1], weight.shape[1])


PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "addmm": conv1d,
    "matmul": lambda x, weight, bias: x @ weight + bias,
    "bias first": lambda x, weight, bias: bias + torch.matmul(x, weight),
    "einsum": lambda x, weight, bias: torch.einsum("bsd,de->bse", x, weight) + bias,
    "einsum, weight first": lambda x, weight, bias: torch.einsum("de, bsd -> bse", [weight, x]) + bias,
}


@pytest.mark.parametrize("how", PRODUCTS.values(), ids=PRODUCTS)
def test_products_with_a_stored_matrix(how: Any) -> None:
    torch.manual_seed(0)
    usual = Usual()
    assert_alike(usual, Stored(how, usual), TOKENS, ["tensorrt", "onnxruntime"])


class Heads(nn.Module):
    """A projection into heads and back, as (size, heads, head size)."""

    def __init__(self, is_einsum: bool) -> None:
        super().__init__()
        self.inner, self.outer = nn.Parameter(torch.rand(8, 2, 3) - 0.5), nn.Parameter(torch.rand(2, 3, 8) - 0.5)
        self.is_einsum = is_einsum

    def forward(self, x: Tensor) -> Tensor:
        if self.is_einsum:
            return torch.einsum("bshk,hkd->bsd", F.gelu(torch.einsum("bsd,dhk->bshk", x, self.inner)), self.outer)
        x = F.gelu(F.linear(x, self.inner.flatten(1).t()))
        return F.linear(x, self.outer.flatten(0, 1).t())


def test_einsum_with_the_weights_of_heads() -> None:
    torch.manual_seed(0)
    usual, einsum = Heads(False), Heads(True)
    einsum.load_state_dict(usual.state_dict())
    assert_alike(usual, einsum, TOKENS, ["tensorrt", "onnxruntime"])


class Attention(nn.Module):
    def __init__(self, products: tuple[Callable[[Tensor, Tensor], Tensor], ...]) -> None:
        super().__init__()
        self.scores, self.attend = products
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (layer(x).unflatten(2, (2, 4)) for layer in (self.q, self.k))
        return self.attend(torch.softmax(self.scores(q, k), -1), k)


def test_einsum_of_activations() -> None:
    torch.manual_seed(0)
    usual = Attention((
        lambda q, k: q.permute(0, 2, 1, 3) @ k.permute(0, 2, 3, 1),
        lambda weights, v: (weights @ v.permute(0, 2, 1, 3)).permute(0, 2, 1, 3),
    ))  # fmt: skip
    einsum = Attention((
        lambda q, k: torch.einsum("bqhd,bkhd->bhqk", q, k),
        lambda weights, v: torch.einsum("bhqk,bkhd->bqhd", weights, v),
    ))  # fmt: skip
    einsum.load_state_dict(usual.state_dict())
    assert_alike(usual, einsum, TOKENS, ["tensorrt", "onnxruntime"])


class Pooled(nn.Module):
    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc, self.pool = nn.Conv2d(4, 4, 3), nn.Linear(4, 4), pool

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(torch.relu(self.conv(x))))


MEANS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((2, 3)),
    "dim": lambda x: torch.mean(x, dim=[-1, -2]),
    "keepdim": lambda x: x.mean((3, 2), keepdim=True).flatten(1),
}


@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS)
def test_the_mean_of_all_positions_is_a_pooling(mean: Any) -> None:
    torch.manual_seed(0)
    usual, other = Pooled(lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1)), Pooled(mean)
    other.load_state_dict(usual.state_dict())
    assert_alike(usual, other, IMAGES, ["tensorrt", "onnxruntime"])
