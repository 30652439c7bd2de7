"""One convolution with a batch norm of its own behind each call, as in heads that several scales share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Shared(nn.Module):
    def __init__(self, norms: int, plain_calls: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(norms))
        self.plain_calls = plain_calls
        for norm in self.norms:
            nn.init.normal_(norm.weight)
            norm.running_mean.normal_()

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = F.relu(norm(self.conv(x)))
        for _ in range(self.plain_calls):
            x = self.conv(x)
        return x


def layers(model: nn.Module, **options: bool) -> list[str]:
    found = fxq.explain(fxq.prepare(model, X, **options))
    return [f"{node.kind} {node.path}" for node in found.nodes if node.kind in ("conv", "batch_norm")]


def test_each_batch_norm_is_folded_into_a_copy() -> None:
    model = Shared(norms=3).eval()
    assert layers(model, verify=True) == ["conv conv", "conv conv_1", "conv conv_2"]


def test_calls_without_a_batch_norm_keep_the_weight() -> None:
    model = Shared(norms=1, plain_calls=2).eval()
    assert layers(model, verify=True) == ["conv conv_1", "conv conv", "conv conv"]


def test_in_training_the_weight_stays_shared() -> None:
    found = layers(Shared(norms=2).eval(), qat=True)
    assert found == ["conv conv", "batch_norm norms.0", "conv conv", "batch_norm norms.1"]


def test_rules_for_the_layer_hold_for_its_copies() -> None:
    recipe = fxq.recipe("tensorrt").with_rules(("conv", None))
    assert not fxq.explain(fxq.prepare(Shared(norms=2).eval(), X, recipe)).coverage.quantized


class Crossed(nn.Module):
    """Two convolutions, one batch norm behind both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.other(self.first(self.norm(self.first(x))))))


def test_no_copy_is_made_that_would_not_be_folded() -> None:
    assert len(fxq.explain(fxq.prepare(Crossed().eval(), X, verify=True)).coverage.quantized) == 3
