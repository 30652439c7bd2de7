"""The pass's own test: what a plugin's author writes."""

import pytest
import torch
from fxq_fold_scaling import FoldScaling
from torch import Tensor, nn

import fxq
from fxq.testing import assert_rewrites

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class ScaledResidual(nn.Module):
    """``x + 0.1 * conv(x)``; ``calls`` times."""

    def __init__(self, calls: int = 1, is_read_again: bool = False) -> None:
        super().__init__()
        self.calls, self.is_read_again = calls, is_read_again
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x and its scaled residuals."""
        for _ in range(self.calls):
            branch = self.conv(x)
            x = x + 0.1 * branch
        return x + branch if self.is_read_again else x


def test_a_factor_behind_a_convolution_moves_into_its_weights() -> None:
    record = assert_rewrites(
        [FoldScaling()],
        model=ScaledResidual(),
        inputs=X,
        before="""
            x = input
            conv = Conv2d[conv](x)
            mul = mul(0.1, conv)
            add = add(x, mul)
            return add
        """,
        after="""
            x = input
            conv = Conv2d[conv](x)
            add = add(x, conv)
            return add
        """,
    )
    assert record.of("fold_scaling", "edit")[0].text == "times 0.1, folded into 'conv'"


@pytest.mark.parametrize(
    ("model", "step", "why"),
    [
        (ScaledResidual(is_read_again=True), FoldScaling(), "'conv' has 2 readers; folding would change the others"),
        (ScaledResidual(calls=2), FoldScaling(), "'conv' is called 2 times"),
        (ScaledResidual(), FoldScaling(largest=0.01), "the factor 0.1 is larger than largest=0.01"),
    ],
    ids=["another reader", "called twice", "option largest"],
)
def test_a_layer_that_others_read_is_left_alone(model: nn.Module, step: FoldScaling, why: str) -> None:
    recipe = fxq.recipe("tensorrt").replace(passes=(fxq.PassSpec("fold_scaling", (("largest", step.largest),)),))
    prepared = fxq.prepare(model.eval(), X, recipe=recipe, verify=True)
    assert fxq.explain(prepared)["mul"].reason == why


def test_in_a_recipe_the_folded_convolution_absorbs_the_add() -> None:
    recipe = fxq.recipe("tensorrt").with_pass("fold_scaling", after="functional_to_module", largest=1.0)
    prepared = fxq.prepare(ScaledResidual().eval(), X, recipe=recipe, verify=True)
    assert fxq.explain(prepared).counts == {"input": 1, "weight": 1, "residual": 1}
    assert fxq.Recipe.from_toml(recipe.to_toml()) == recipe
