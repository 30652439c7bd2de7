"""Ranges in a state dict: they come back, and what does not fit is named by its key."""

import io

import pytest
import torch
from torch import Tensor, nn

from fxq.graph import fit_weights
from fxq.nn import QuantConv2d, QuantConvTranspose2d, QuantLinear, TensorQuantizer
from fxq.quant.descriptor import QuantDescriptor

DESCRIPTORS = [
    pytest.param(QuantDescriptor(), id="per-tensor"),
    pytest.param(QuantDescriptor(axis=1), id="per-channel"),
    pytest.param(QuantDescriptor(axis=(0, 1)), id="two axes"),
    pytest.param(QuantDescriptor(symmetric=False, unsigned=True), id="affine"),
    pytest.param(QuantDescriptor(symmetric=False, axis=-1), id="affine per-channel"),
    pytest.param(QuantDescriptor(axis=1, learn_amax=True), id="learned"),
]


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def calibrated(descriptor: QuantDescriptor, x: Tensor) -> TensorQuantizer:
    quantizer = TensorQuantizer(descriptor, if_calib=True)
    quantizer(x)
    quantizer.load_calib_amax()
    quantizer.disable_calib()
    return quantizer


@pytest.mark.parametrize("descriptor", DESCRIPTORS)
@pytest.mark.parametrize("is_calibrated", [False, True], ids=["into a new one", "into a calibrated one"])
def test_state_dict_restores_the_range(descriptor: QuantDescriptor, is_calibrated: bool) -> None:
    x = data(2, 3, 4)
    quantizer = calibrated(descriptor, x)
    file = io.BytesIO()
    torch.save(nn.Sequential(quantizer).state_dict(), file)
    file.seek(0)
    other = calibrated(descriptor, x * 3) if is_calibrated else TensorQuantizer(descriptor)
    nn.Sequential(other).load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), quantizer(x))
    assert [name for name, _ in other.named_parameters()] == [name for name, _ in quantizer.named_parameters()]


def test_keys_are_those_of_pytorch_quantization() -> None:
    assert list(calibrated(QuantDescriptor(axis=0), data(3, 4)).state_dict()) == ["_amax"]
    assert list(calibrated(QuantDescriptor(symmetric=False), data(3, 4)).state_dict()) == ["_low", "_high"]
    assert list(TensorQuantizer().state_dict()) == []


def test_loaded_range_is_not_shared_with_the_state_dict() -> None:
    state = {"_amax": torch.tensor(1.0)}
    quantizer = TensorQuantizer()
    quantizer.load_state_dict(state)
    state["_amax"].fill_(9.0)
    assert quantizer.amax == 1.0


def test_half_precision_state_is_loaded_as_float32() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=0))
    quantizer.load_state_dict({"_amax": torch.tensor([[1.0], [2.0]], dtype=torch.float16)}, assign=True)
    assert quantizer.amax.dtype == torch.float32


def test_flat_and_kept_dimensions_are_the_same_range() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=0, amax=(1.0, 2.0)))
    quantizer.load_state_dict({"_amax": torch.tensor([[3.0], [4.0]])})
    assert quantizer.amax.tolist() == [3.0, 4.0]


def test_state_that_does_not_fit_names_the_key() -> None:
    model = nn.Sequential(TensorQuantizer(QuantDescriptor(axis=0)), TensorQuantizer(QuantDescriptor(symmetric=False)))
    with pytest.raises(RuntimeError, match=r"0\._amax has shape \(2, 3\).*axis 0"):
        model.load_state_dict({"0._amax": torch.ones(2, 3)})
    with pytest.raises(RuntimeError, match=r"1\._high is missing"):
        model.load_state_dict({"1._low": torch.tensor(0.0)})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({"1._amax": torch.tensor(0.0)})
    with pytest.raises(RuntimeError, match="Missing key"):
        nn.Sequential(calibrated(QuantDescriptor(), data(3))).load_state_dict({})
    with pytest.raises(RuntimeError, match=r"_amax has shape \(4, 1\), expected \(3, 1\)"):
        calibrated(QuantDescriptor(axis=0), data(3, 2)).load_state_dict({"_amax": torch.ones(4, 1)}, strict=False)


def test_a_range_of_other_channels_than_the_weight_is_named_before_there_is_one() -> None:
    model = nn.Sequential(nn.Sequential(QuantConv2d(3, 8, 3)), QuantConvTranspose2d(3, 8, 3), QuantLinear(4, 5))
    state = model.state_dict()
    wrong = {
        "0.0._weight_quantizer._amax": torch.ones(4, 1, 1, 1),
        "1._weight_quantizer._amax": torch.ones(3, 1, 1, 1),
        "2._weight_quantizer._amax": torch.ones(4),
    }
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(state | wrong, strict=False)
    for line in (
        "0.0._weight_quantizer._amax has shape (4, 1, 1, 1), expected (8, 1, 1, 1)",
        "1._weight_quantizer._amax has shape (3, 1, 1, 1), expected a range that varies along axis 1 only",
        "2._weight_quantizer._amax has shape (4,), expected (5, 1)",
    ):
        assert line in str(caught.value)
    assert not any(layer.weight_quantizer.has_range for layer in (model[0][0], model[1], model[2]))


def test_flat_channels_one_range_and_the_saved_shape_fit_a_weight() -> None:
    for shape in [(8,), (8, 1, 1, 1), ()]:
        layer = QuantConv2d(3, 8, 3)
        layer.load_state_dict(layer.state_dict() | {"_weight_quantizer._amax": torch.ones(shape)})
        assert layer.weight_quantizer.amax.shape == shape


def test_blocks_of_another_weight_are_named() -> None:
    layer = QuantLinear(40, 6, quant_desc_weight=QuantDescriptor(num_bits=4, axis=0, block_size=16))
    fit_weights(layer)
    other = QuantLinear(80, 6, quant_desc_weight=layer.weight_quantizer.descriptor)
    ranges = {"_weight_quantizer._amax": layer.weight_quantizer.amax}
    with pytest.raises(RuntimeError, match=r"_weight_quantizer\._amax has shape \(6, 3\), expected \(6, 5\)"):
        other.load_state_dict(other.state_dict() | ranges)
    with pytest.raises(RuntimeError, match=r"_amax has shape \(6, 1, 1\), expected a range of shape \(out, blocks\)"):
        other.load_state_dict(other.state_dict() | {"_weight_quantizer._amax": torch.ones(6, 1, 1)})


@pytest.mark.parametrize("strict", [True, False])
def test_a_range_of_another_kind_is_missing_and_unexpected(strict: bool) -> None:
    model = nn.Sequential(calibrated(QuantDescriptor(), data(3)))
    affine = {"0._low": torch.tensor(0.0), "0._high": torch.tensor(1.0)}
    if strict:
        with pytest.raises(RuntimeError, match=r'Missing key.*"0\._amax"[^$]*Unexpected key.*"0\._low", "0\._high"'):
            model.load_state_dict(affine)
        return
    found = model.load_state_dict(affine, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["0._amax"], ["0._low", "0._high"])


REFUSED_VALUES: dict[str, tuple[QuantDescriptor, dict[str, Tensor], str]] = {
    "negative": (QuantDescriptor(), {"0._amax": torch.tensor(-1.0)}, r"0\._amax is negative"),
    "NaN": (QuantDescriptor(axis=0), {"0._amax": torch.tensor([1.0, torch.nan])}, r"0\._amax is not finite"),
    "infinity": (
        QuantDescriptor(symmetric=False),
        {"0._low": torch.tensor(-torch.inf), "0._high": torch.tensor(1.0)},
        r"0\._low is not finite",
    ),
    "empty": (
        QuantDescriptor(symmetric=False),
        {"0._low": torch.tensor(1.0), "0._high": torch.tensor(0.0)},
        r"0\._low is more than _high",
    ),
    "two shapes": (
        QuantDescriptor(symmetric=False, axis=0),
        {"0._low": torch.zeros(3), "0._high": torch.ones(4)},
        r"0\._low has shape \(3,\) and _high \(4,\)",
    ),
}


@pytest.mark.parametrize(("descriptor", "state", "message"), REFUSED_VALUES.values(), ids=REFUSED_VALUES)
def test_a_range_that_could_not_be_assigned_is_not_loaded(
    descriptor: QuantDescriptor, state: dict[str, Tensor], message: str
) -> None:
    model = nn.Sequential(TensorQuantizer(descriptor))
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)
    assert not model[0].has_range


def test_a_learned_range_below_zero_comes_back() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(learn_amax=True))
    quantizer.load_state_dict({"_amax": torch.tensor(-0.1)})
    assert torch.equal(quantizer.amax, torch.tensor(-0.1))


def test_a_range_of_a_quantizer_that_is_not_there_is_unexpected() -> None:
    layer = QuantLinear.from_float(nn.Linear(4, 5))  # in a graph, which quantizes the input itself
    extra = {"_input_quantizer._amax": torch.tensor(1.0)}
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"_input_quantizer\._amax"'):
        layer.load_state_dict(layer.state_dict() | extra)
