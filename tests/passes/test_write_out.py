import pytest
import torch
from support.spellings import assert_alike
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq.testing import assert_rewrites
from fxq_passes import WriteOut

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


def windowed(x: Tensor, weight: Tensor, sizes: list[int], bias: Tensor | None = None, shift: int = 1) -> Tensor:
    """Attention as torchvision's Swin has it: the sizes in a list, a tensor of its own, items that are assigned."""
    sizes = sizes.copy()
    if sizes[0] > 2:
        sizes[0] = 1
    mask = x.new_zeros((3, 3))
    mask[:, : sizes[0]] = 1
    x = F.linear(x, weight, bias)
    return torch.matmul(x, x.transpose(1, 2)) * sizes[0] * shift + mask + torch.eye(3)


def doubled(x: Tensor) -> Tensor:
    return x * 2


def by_value(x: Tensor) -> Tensor:
    return x @ x if x.sum() > 0 else x


for _name in ("windowed", "doubled", "by_value"):
    torch.fx.wrap(_name)


class Windowed(nn.Module):
    def __init__(self, is_wrapped: bool) -> None:
        super().__init__()
        self.qkv, self.is_wrapped = nn.Linear(4, 4), is_wrapped

    def forward(self, x: Tensor) -> Tensor:
        if self.is_wrapped:
            return windowed(x, self.qkv.weight, [x.shape[1], 2], bias=self.qkv.bias)
        mask = torch.cat([torch.ones(3, 1), torch.zeros(3, 2)], 1) + torch.eye(3)
        x = self.qkv(x)
        return torch.matmul(x, x.transpose(1, 2)) + mask


def test_the_products_of_a_wrapped_function_are_quantized() -> None:
    spelled, wrapped = Windowed(False), Windowed(True)
    wrapped.load_state_dict(spelled.state_dict())
    assert_alike(spelled, wrapped, X, ["tensorrt"])


class Calls(nn.Module):
    def __init__(self, function: str) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return doubled(x) if self.function == "doubled" else by_value(x.transpose(1, 2) @ x)


def test_a_wrapped_function_that_multiplies_no_matrices_stays_whole() -> None:
    record = assert_rewrites(
        [WriteOut()],
        model=Calls("doubled"),
        inputs=X,
        after="""
            x = input
            doubled = doubled(x)
            return doubled
        """,
    )
    assert not record.entries


def test_a_wrapped_function_that_cannot_be_traced_stays_whole_and_says_why() -> None:
    prepared = fxq.prepare(Calls("by_value").eval(), X)
    reason = fxq.explain(prepared)["by_value"].reason
    assert reason.startswith("behind torch.fx.wrap, and cannot be traced: TraceError: control flow depends on the data")


class Attends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


def test_attention_becomes_its_products() -> None:
    assert_rewrites(
        [WriteOut()],
        model=Attends(),
        inputs=X,
        before="""
            x = input
            scaled_dot_product_attention = scaled_dot_product_attention(x, x, x)
            return scaled_dot_product_attention
        """,
        after="""
            x = input
            mul = mul(x, 0.5)
            transpose = .transpose(x, -2, -1)
            matmul = matmul(mul, transpose)
            softmax = softmax(matmul, -1)
            matmul_1 = matmul(softmax, x)
            return matmul_1
        """,
    )


@pytest.mark.parametrize("rule", [None, ("0", None)])
def test_attention_that_a_rule_leaves_in_float_stays_whole(rule: tuple[str, None] | None) -> None:
    recipe = fxq.recipe("tensorrt").with_rules(*([rule] if rule else []))
    model = nn.Sequential(Attends(), nn.Linear(4, 4)).eval()
    kinds = {node.kind for node in fxq.explain(fxq.prepare(model, X, recipe=recipe)).nodes}
    assert ("attention" in kinds) == (rule is not None)
