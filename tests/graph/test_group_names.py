"""The names of groups are rules: whatever is left in float of a model, ``prepare`` takes them all."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq.graph.groups import find_groups

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A convolution, a SiLU that a target may take apart, and a convolution."""

    def __init__(self, is_module: bool) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Conv2d(3, 8, 3), nn.SiLU() if is_module else None, nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(F.silu(y) if self.act is None else self.act(y))


@pytest.mark.parametrize("is_module", [True, False], ids=["module", "function"])
def test_a_silu_goes_back_to_float_whole(is_module: bool) -> None:
    """Its sigmoid is no module, and its product no operation, where the convolution before it is in float."""
    model, recipe = Net(is_module).eval(), fxq.recipe("onnxruntime")
    groups = find_groups(fxq.prepare(model, X, recipe), recipe.resolved_target)
    assert [group.paths for group in groups] == [("first",), ("act" if is_module else "silu",), ("last",)]
    assert len(groups[1].nodes) == 2
    for count in range(1, 4):
        for chosen in itertools.combinations(groups, count):
            rules = [(path, None) for group in chosen for path in group.paths]
            prepared = fxq.prepare(model, X, recipe.with_rules(*rules))
            left = {group.path for group in groups if group not in chosen}
            in_integers = {name for name, module in prepared.named_modules() if isinstance(module, fxq.nn.Quantized)}
            assert in_integers == left & {"first", "last"}
