"""A layer as a product of matrices: positions and patches are those that torch's own convolution sees."""

import pytest
import torch
from torch import Tensor, nn

from fxq_passes.accuracy.layer_matrix import LayerMatrix

LAYERS = {
    "linear": (nn.Linear(6, 5), (7, 6)),
    "linear of sequences": (nn.Linear(6, 5), (2, 3, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), padding=(1, 0)), (2, 4, 6, 7)),
    "conv3d": (nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 2)), (2, 2, 3, 4, 5)),
    "pointwise": (nn.Conv2d(4, 6, 1), (2, 4, 3, 5)),
    "stride and dilation": (nn.Conv2d(4, 6, 3, stride=(2, 1), dilation=(1, 2), padding=2), (2, 4, 8, 9)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 6)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 5, 6)),
    "depthwise multiplied": (nn.Conv1d(3, 6, 3, groups=3), (2, 3, 8)),
    "same padding": (nn.Conv2d(4, 6, (2, 3), padding="same", dilation=(1, 2)), (2, 4, 5, 6)),
    "valid padding": (nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 5, 6)),
    "circular padding": (nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"), (2, 4, 5, 6)),
    "reflected padding": (nn.Conv1d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 7)),
    "unbatched": (nn.Conv2d(4, 6, 3, padding=1), (4, 5, 6)),
}


def positions(layer: nn.Module, outputs: Tensor) -> Tensor:
    """Return (positions, output channels) of what a layer computes, without its bias."""
    axis = -1 if isinstance(layer, nn.Linear) else 1 - layer.weight.dim()
    return (outputs.movedim(axis, -1).flatten(0, -2) - layer.bias).detach()


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_the_product_is_what_the_layer_computes(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer, batches = layer.double(), [seeded(*shape, seed=seed).double() for seed in range(2)]
    matrix = LayerMatrix.of(layer)
    assert matrix is not None
    sampled = matrix.sample(batches, 10**6)  # more than there are: all of them, in order
    found = matrix.outputs(sampled, layer.weight).flatten(1)
    expected = torch.cat([positions(layer, layer(batch)) for batch in batches])
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_a_factor_for_each_input_channel_goes_into_the_weight(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer, x = layer.double(), seeded(*shape).double()
    matrix = LayerMatrix.of(layer)
    assert matrix is not None
    axis = -1 if isinstance(layer, nn.Linear) else 1 - layer.weight.dim()
    factor_c = torch.linspace(0.5, 2, x.shape[axis]).double()
    expected = layer(x)
    with torch.no_grad():
        layer.weight.copy_(matrix.scale_inputs(layer.weight, factor_c))
        found = layer(x / factor_c.reshape(-1, *[1] * (-1 - axis)))
        layer.weight.copy_(matrix.scale_inputs(layer.weight, 1 / factor_c))  # the layers serve other tests
    torch.testing.assert_close(found, expected)


def test_samples_are_the_same_for_the_same_seed_and_drawn_from_all_batches() -> None:
    matrix = LayerMatrix.of(nn.Conv2d(2, 3, 3))
    assert matrix is not None
    batches = [seeded(4, 2, 9, 9), seeded(2, 2, 12, 7) + 100]
    first, again, other = (matrix.sample(batches, 50, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # 196 and 100 positions: a share of the 50 each.
    assert [int((first.mean((1, 2)) < 50).sum()), len(first)] == [33, 50]


def test_both_streams_are_sampled_at_the_same_positions() -> None:
    matrix = LayerMatrix.of(nn.Conv1d(2, 3, 3, padding=1))
    assert matrix is not None
    x = seeded(5, 2, 40)
    torch.testing.assert_close(matrix.sample([x * 2], 20), matrix.sample([x], 20) * 2)


@pytest.mark.parametrize(
    ("layer", "is_padded", "is_depthwise"),
    [
        (nn.Linear(3, 3), False, False),
        (nn.Conv2d(3, 3, 3), False, False),
        (nn.Conv2d(3, 3, 3, padding=(0, 1)), True, False),
        (nn.Conv2d(3, 3, 3, padding="valid"), False, False),
        (nn.Conv2d(3, 3, 3, padding="same"), True, False),
        (nn.Conv2d(4, 4, 3, groups=4), False, True),
        (nn.Conv2d(4, 8, 3, groups=2), False, False),
        (nn.Conv2d(4, 8, 3, groups=4), False, True),
    ],
)
def test_what_a_layer_is(layer: nn.Module, is_padded: bool, is_depthwise: bool) -> None:
    matrix = LayerMatrix.of(layer)
    assert matrix is not None
    assert (matrix.is_padded, matrix.is_depthwise) == (is_padded, is_depthwise)


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(2, 3, 3), nn.ReLU(), nn.Embedding(3, 4)])
def test_what_is_no_such_product_has_no_matrix(layer: nn.Module) -> None:
    assert LayerMatrix.of(layer) is None


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (8, 50, 4)),
        (nn.Conv2d(3, 4, 3, 2, 1), (8, 3, 20, 20)),
        (nn.Conv1d(4, 4, 3, groups=4), (5, 4, 99)),
    ],
    ids=["linear", "padded conv", "depthwise"],
)
def test_the_largest_values_are_among_the_samples_and_the_rest_is_weighted(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    values = list((torch.randn(shape) ** 3).split(3))
    matrix = LayerMatrix.of(layer)
    assert matrix is not None
    every, some = matrix.sample(values, 10**6), matrix.sample_with_extremes(values, 64)
    assert len(some.inputs) == len(some.counts) == 64
    assert float(some.counts.sum()) == pytest.approx(len(every))
    reaches = every.abs().flatten(1).amax(1).sort(descending=True).values[:16]
    found = some.inputs.abs().flatten(1).amax(1)[some.counts == 1].sort(descending=True).values
    torch.testing.assert_close(found, reaches)
    # A sum over all is what the weighted one estimates; the drawn rest has a standard error of about a tenth.
    power = (some.inputs.square().flatten(1).sum(1) * some.counts).sum() / every.square().sum()
    assert float(power) == pytest.approx(1, abs=0.3)


def test_few_positions_are_all_taken() -> None:
    matrix, values = LayerMatrix.of(nn.Linear(4, 3)), [torch.randn(3, 4), torch.randn(2, 4)]
    assert matrix is not None
    found = matrix.sample_with_extremes(values, 64)
    assert torch.equal(found.inputs[:, 0], torch.cat(values))
    assert torch.equal(found.counts, torch.ones(5))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_layer_of_channels_changes_nothing(dims: int) -> None:
    value = torch.randn(3, 4, *[5] * dims, dtype=torch.float64)
    matrix = LayerMatrix.of_channels(value, dims)
    assert matrix.is_depthwise
    assert matrix.channels == 4
    torch.testing.assert_close(matrix.layer(value), value)
