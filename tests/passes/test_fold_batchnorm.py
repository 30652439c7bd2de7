from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq.graph import graph_text
from fxq.graph.trace import trace
from fxq.testing import assert_rewrites
from fxq_passes import FoldBatchnorm, FunctionalToModule


def randomized(model: nn.Module) -> nn.Module:
    """Give each batch norm statistics and parameters far from the identity's."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)  # type: ignore[union-attr]
            if module.affine:
                nn.init.normal_(module.weight, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    return model.eval()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


FOLDED = "input_1 = input\n_0 = {}[0](input_1)\nreturn _0"
AFTER = [
    ("conv1d", nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6), (2, 4, 8)),
    ("conv2d", nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), (2, 4, 8, 8)),
    ("conv3d", nn.Conv3d(4, 6, 3, padding=1), nn.BatchNorm3d(6), (2, 4, 5, 5, 5)),
    ("no bias", nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (2, 4, 8, 8)),
    ("groups", nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 8, 8)),
    ("depthwise", nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), (2, 4, 8, 8)),
    ("reflect", nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), (2, 4, 8, 8)),
    ("transposed 1d", nn.ConvTranspose1d(4, 6, 3, stride=2), nn.BatchNorm1d(6), (2, 4, 8)),
    ("transposed 2d", nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), (2, 4, 8, 8)),
    ("transposed 3d", nn.ConvTranspose3d(4, 6, 3, stride=2), nn.BatchNorm3d(6), (2, 4, 4, 4, 4)),
    ("transposed groups", nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 8, 8)),
    ("transposed depthwise", nn.ConvTranspose2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8), (2, 4, 8, 8)),
    ("linear", nn.Linear(4, 6), nn.BatchNorm1d(6), (5, 4)),
    ("no affine", nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (2, 4, 8, 8)),
    ("sync", nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6), (2, 4, 8, 8)),
]


@pytest.mark.parametrize(("layer", "bn", "shape"), [case[1:] for case in AFTER], ids=[case[0] for case in AFTER])
def test_bn_after_a_layer_is_folded(layer: nn.Module, bn: nn.Module, shape: tuple[int, ...]) -> None:
    # assert_rewrites runs both graphs and compares the numbers.
    assert_rewrites(
        [FoldBatchnorm()],
        model=randomized(nn.Sequential(layer, bn)),
        inputs=random(*shape),
        before=f"""
            input_1 = input
            _0 = {type(layer).__name__}[0](input_1)
            _1 = {type(bn).__name__}[1](_0)
            return _1
        """,
        after=FOLDED.format(type(layer).__name__),
    )


def test_folding_is_exact_to_float32() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU()))
    prepared = fxq.prepare(model, random(1, 16, 8, 8), recipe=only(FoldBatchnorm()))
    # The weights are computed in float64 and rounded once: 16 * 9 products a value, each off by half an ulp at most.
    torch.testing.assert_close(prepared(random(1, 16, 8, 8)), model(random(1, 16, 8, 8)), rtol=1e-5, atol=1e-5)


def only(*passes: fxq.Pass) -> fxq.Recipe:
    return fxq.recipe("tensorrt").replace(passes=tuple(fxq.PassSpec(step.name) for step in passes))


BEFORE = [
    ("no padding", nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), (2, 4, 8, 8)),
    ("valid padding", nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 8, 8)),
    ("groups", nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8)),
    ("reflect", nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 8, 8)),
    ("replicate", nn.BatchNorm1d(4), nn.Conv1d(4, 6, 3, padding=1, padding_mode="replicate"), (2, 4, 8)),
    ("circular same", nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), (2, 4, 8, 8)),
    ("linear", nn.BatchNorm1d(4), nn.Linear(4, 6, bias=False), (5, 4)),
]


@pytest.mark.parametrize(("bn", "layer", "shape"), [case[1:] for case in BEFORE], ids=[case[0] for case in BEFORE])
def test_bn_before_a_layer_is_folded_where_it_is_exact(bn: nn.Module, layer: nn.Module, shape: tuple[int, ...]) -> None:
    after = f"input_1 = input\n_1 = {type(layer).__name__}[1](input_1)\nreturn _1"
    assert_rewrites([FoldBatchnorm()], model=randomized(nn.Sequential(bn, layer)), inputs=random(*shape), after=after)


def test_a_bn_that_only_scales_is_folded_into_a_convolution_that_pads_with_zeros() -> None:
    bn = nn.BatchNorm2d(4, affine=False)
    assert bn.running_var is not None
    bn.running_var.fill_(4.0)
    model = nn.Sequential(bn, nn.Conv2d(4, 6, 3, padding=1)).eval()
    after = "input_1 = input\n_1 = Conv2d[1](input_1)\nreturn _1"
    assert_rewrites([FoldBatchnorm()], model=model, inputs=random(2, 4, 8, 8), after=after)


def test_option_before_false_leaves_a_bn_before_a_convolution() -> None:
    model = randomized(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)))
    assert reason(model, random(2, 4, 8, 8), FoldBatchnorm(before=False)).endswith("; option before=False")


def reason(model: nn.Module, inputs: Any, step: fxq.Pass | None = None) -> str:
    """Return why the pass left the graph as it is."""
    text = graph_text(trace(model, inputs if isinstance(inputs, tuple) else (inputs,)))
    record = assert_rewrites([step or FoldBatchnorm()], model=model, inputs=inputs, after=text)
    entries = [entry for entry in record.entries if entry.action == "skip"]
    assert len(entries) == 1
    return entries[0].text


LEFT_ALONE = [
    (
        "zero padding before",
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)),
        (2, 4, 8, 8),
        "pads with zeros, which the batch norm does not shift",
    ),
    (
        "same padding before",
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding="same")),
        (2, 4, 8, 8),
        "pads with zeros, which the batch norm does not shift",
    ),
    (
        "transposed behind",
        nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3)),
        (2, 4, 8, 8),
        "no convolution or linear layer follows it",
    ),
    (
        "batch statistics",
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
        (2, 4, 8, 8),
        "it normalizes with the statistics of the batch",
    ),
    (
        "linear on 3-d input",
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(5)),
        (2, 5, 4),
        "behind a linear layer on 3-d input it normalizes another dimension than the features",
    ),
    (
        "activation between",
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)),
        (2, 4, 8, 8),
        "its input is not computed by a convolution or linear layer",
    ),
    (
        "quantized by hand",
        nn.Sequential(fxq.nn.QuantConv2d(4, 6, 3), nn.BatchNorm2d(6)),
        (2, 4, 8, 8),
        "QuantConv2d is a subclass that may compute something else, or is quantized by hand",
    ),
    (
        "parametrized",
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6)),
        (2, 4, 8, 8),
        "weight is computed by the parametrization WeightNorm from parametrizations.weight.original0",
    ),
]


@pytest.mark.parametrize(
    ("model", "shape", "why"), [case[1:] for case in LEFT_ALONE], ids=[case[0] for case in LEFT_ALONE]
)
def test_a_bn_is_left_alone_where_folding_would_change_numbers(
    model: nn.Module, shape: tuple[int, ...], why: str
) -> None:
    assert why in reason(randomized(model), random(*shape))


def test_a_layer_with_hooks_is_left_alone() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)  # type: ignore[index]
    assert "has forward hooks" in reason(model, random(1, 4, 8, 8))


def test_a_linear_layer_is_left_alone_while_its_rank_is_unknown() -> None:
    model = randomized(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)))
    prepared = fxq.prepare(model, recipe=only(FoldBatchnorm()))
    assert "give prepare() example_inputs" in fxq.explain(prepared)["1"].reason


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.bn(x) + x


def test_conv_with_another_reader_is_left_alone() -> None:
    why = "'conv' has 2 readers; folding would change the others; no convolution or linear layer follows it"
    assert reason(randomized(TwoReaders()), random(1, 4, 8, 8)) == why


class Shared(nn.Module):
    """Calls a convolution and a batch norm twice; ``pair`` decides whether always together."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.pair = pair
        self.conv, self.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        x = self.conv(x)
        return self.bn(x) if self.pair else x


def test_a_pair_called_twice_is_folded_once() -> None:
    assert_rewrites(
        [FoldBatchnorm()],
        model=randomized(Shared(pair=True)),
        inputs=random(1, 4, 8, 8),
        after="""
            x = input
            conv = Conv2d[conv](x)
            conv_1 = Conv2d[conv](conv)
            return conv_1
        """,
    )


def test_a_convolution_called_once_more_without_bn_keeps_its_weight_there() -> None:
    assert_rewrites(
        [FoldBatchnorm()],
        model=randomized(Shared(pair=False)),
        inputs=random(1, 4, 8, 8),
        after="""
            x = input
            conv = Conv2d[conv_1](x)
            conv_1 = Conv2d[conv](conv)
            return conv_1
        """,
    )


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.b(torch.relu(self.bn(self.a(x)))))


def test_a_bn_behind_two_convolutions_is_left_alone() -> None:
    assert "it is called behind different layers" in reason(randomized(SharedNorm()), random(1, 4, 8, 8))


class Tied(nn.Module):
    """Two convolutions with one weight, one of them normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.bn(self.a(x))))


def test_folding_into_a_tied_weight_spares_its_twin() -> None:
    assert_rewrites(
        [FoldBatchnorm()],
        model=randomized(Tied()),
        inputs=random(1, 4, 8, 8),
        after="""
            x = input
            a = Conv2d[a](x)
            relu = relu(a)
            b = Conv2d[b](relu)
            return b
        """,
    )


class ReadsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * self.conv.weight.mean()


def test_a_weight_that_the_graph_reads_elsewhere_is_not_folded() -> None:
    assert "'conv' is also called where" in reason(randomized(ReadsWeight()), random(1, 4, 8, 8))


def test_several_bns_fold_one_after_the_other() -> None:
    model = randomized(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.BatchNorm2d(6)))
    after = "input_1 = input\n_1 = Conv2d[1](input_1)\nreturn _1"
    assert_rewrites([FoldBatchnorm()], model=model, inputs=random(2, 4, 8, 8), after=after)


def test_half_precision_weights_are_rounded_once() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))).to(torch.bfloat16)
    x = random(1, 4, 8, 8).to(torch.bfloat16)
    assert_rewrites([FoldBatchnorm()], model=model, inputs=x, after=FOLDED.format("Conv2d"))


class NormalizesItself(nn.BatchNorm2d):
    """As timm writes its batch norm: functional, with an activation inside."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
        return self.act(x)


def test_a_functional_batch_norm_is_folded_too() -> None:
    assert_rewrites(
        [FunctionalToModule(), FoldBatchnorm()],
        model=randomized(nn.Sequential(nn.Conv2d(4, 6, 3), NormalizesItself(6))),
        inputs=random(1, 4, 8, 8),
        after="""
            input_1 = input
            _0 = Conv2d[0](input_1)
            _1_act = ReLU[1.act](_0)
            return _1_act
        """,
    )
