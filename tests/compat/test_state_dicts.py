"""State dicts as pytorch-quantization saves them load on the CPU, and what does not fit is named."""

import pytest
import torch
from torch import Tensor, nn

from fxq.compat.pytorch_quantization import nn as quant_nn
from fxq.compat.pytorch_quantization.tensor_quant import QuantDescriptor


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = quant_nn.QuantConv2d(3, 4, 3)
        self.up = quant_nn.QuantConvTranspose2d(4, 2, 2)
        self.lstm = quant_nn.QuantLSTM(2, 3, bidirectional=True)


def saved() -> dict[str, Tensor]:
    """Return the state of Net with the keys and shapes that the original writes for it after calibration."""
    torch.manual_seed(0)
    state = {name: tensor.clone() for name, tensor in Net().state_dict().items()}
    ranges: dict[str, tuple[int, ...]] = {
        "conv._input_quantizer._amax": (),
        "conv._weight_quantizer._amax": (4, 1, 1, 1),
        "up._input_quantizer._amax": (),
        "up._weight_quantizer._amax": (1, 2, 1, 1),
        **{f"lstm._input_quantizers.{index}._amax": () for index in range(2)},
        **{f"lstm._weight_quantizers.{index}._amax": (12, 1) for index in range(2)},
    }
    return state | {name: torch.rand(shape) + 0.5 for name, shape in ranges.items()}


def with_ranges() -> Net:
    net = Net()
    for module in net.modules():
        if isinstance(module, quant_nn.TensorQuantizer):
            module.amax = 1.0
    net.conv.weight_quantizer.reset_amax()
    net.conv.weight_quantizer.amax = torch.ones(4, 1, 1, 1)
    return net


def test_ranges_load_into_modules_without_ranges() -> None:
    state, net = saved(), Net()

    net.load_state_dict(state)

    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in state.items())


def test_ranges_load_into_modules_with_ranges() -> None:
    state, net = saved(), with_ranges()
    for name in ("up", "lstm"):  # a range of one value is not one of several
        for module in net.get_submodule(name).modules():
            if isinstance(module, quant_nn.TensorQuantizer):
                module.reset_amax()

    net.load_state_dict(state)

    assert torch.equal(net.conv.weight_quantizer.amax, state["conv._weight_quantizer._amax"])
    assert torch.equal(net.conv.input_quantizer.amax, state["conv._input_quantizer._amax"])


def test_a_missing_range_is_named() -> None:
    state = saved()
    del state["conv._input_quantizer._amax"]

    with pytest.raises(RuntimeError, match=r'Missing key.*"conv\._input_quantizer\._amax"'):
        with_ranges().load_state_dict(state)


@pytest.mark.parametrize("make", [Net, with_ranges], ids=["without ranges", "with ranges"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv._weight_quantizer._amax", (1, 4, 1, 1)),
        ("conv._input_quantizer._amax", (3,)),
        ("up._weight_quantizer._amax", (2, 1, 1, 1)),
    ],
)
def test_a_range_of_a_wrong_shape_is_named(make: type[Net], name: str, shape: tuple[int, ...]) -> None:
    state = saved() | {name: torch.ones(shape)}

    with pytest.raises(RuntimeError, match=name.replace(".", r"\.") + r" has shape"):
        make().load_state_dict(state)


def test_learned_clip_and_input_scale_load() -> None:
    descriptor = QuantDescriptor(learn_amax=True)
    state = {
        "clip.clip_value_min": torch.tensor(-2.5),
        "clip.clip_value_max": torch.tensor(2.0),
        "_pre_quant_scale": torch.tensor([[1.0, 2.0]]),
    }
    quantizer = quant_nn.TensorQuantizer(descriptor)

    quantizer.load_state_dict(state)

    assert quantizer.state_dict().keys() == state.keys()
    # Scaled by (1, 2), clipped to [-2.5, 2]; amax is the larger bound, and 127 steps of it make 2.5.
    found = quantizer(torch.tensor([[3.0, -2.0]]))
    step = 2.5 / 127
    torch.testing.assert_close(found, torch.tensor([[round(2.0 / step) * step, -2.5]]))
    with pytest.raises(RuntimeError, match=r"size mismatch for _pre_quant_scale"):
        quantizer.load_state_dict(state | {"_pre_quant_scale": torch.ones(3)})


def test_scaled_range_is_saved_as_it_was_calibrated() -> None:
    quantizer = quant_nn.TensorQuantizer(QuantDescriptor(scale_amax=0.5), if_calib=True)
    quantizer(torch.tensor([1.0, -4.0]))
    quantizer.load_calib_amax()

    assert quantizer.state_dict()["_amax"] == 4.0
    assert quantizer(torch.tensor([3.0])) == 2.0
