"""initialize and deactivate: torch.nn is patched while a model is built, and true again afterwards."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import fxq
from fxq.compat.pytorch_quantization import deactivate, initialize, quant_modules
from fxq.compat.pytorch_quantization import nn as quant_nn
from fxq.compat.pytorch_quantization.quant_modules import QuantModuleReplacementHelper
from fxq.errors import CompatError

NAMES = [entry.mod_name for entry in quant_modules._DEFAULT_QUANT_MAP]
FLOAT = {name: getattr(nn, name) for name in NAMES}


class Functional(nn.Module):
    """A linear layer that torch.nn has no class for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight)


class MyLinear(quant_nn.QuantLinear):
    """A user's replacement."""


def assert_torch_is_true() -> None:
    assert {name: getattr(nn, name) for name in NAMES} == FLOAT


def test_modules_are_replaced_until_deactivate() -> None:
    initialize()
    assert {name: getattr(nn, name).__name__ for name in NAMES} == {name: f"Quant{name}" for name in NAMES}
    assert isinstance(nn.Conv2d(1, 1, 1), FLOAT["Conv2d"])
    deactivate()
    assert_torch_is_true()


def test_one_deactivate_undoes_two_initializes() -> None:
    initialize()
    initialize(["Linear"])
    assert nn.Linear is FLOAT["Linear"]
    assert nn.Conv2d is quant_nn.QuantConv2d
    deactivate()
    assert_torch_is_true()
    deactivate()
    assert_torch_is_true()


def test_torch_is_true_after_an_exception() -> None:
    def build() -> None:
        with initialize():
            assert nn.LSTM is quant_nn.QuantLSTM
            nn.Conv2d(0, 1, 1, groups=0)

    with pytest.raises(ValueError, match="groups"):
        build()
    assert_torch_is_true()


def test_custom_modules_win_over_the_float_list() -> None:
    class Library:
        Block: Any = nn.Identity

    with initialize(["Linear", "LSTM"], [(torch.nn, "Linear", MyLinear), (Library, "Block", MyLinear)]):
        assert nn.Linear is Library.Block is MyLinear
        assert nn.LSTM is FLOAT["LSTM"]
    assert_torch_is_true()
    assert Library.Block is nn.Identity


def test_an_entry_that_names_nothing_changes_nothing() -> None:
    with pytest.raises(CompatError, match="no 'Linaer' to replace"):
        initialize(custom_quant_modules=[(torch.nn, "Linaer", MyLinear)])
    assert_torch_is_true()


@pytest.mark.parametrize("helper_first", [True, False], ids=["helper ends first", "helper ends last"])
def test_two_helpers_leave_torch_true_in_any_order(helper_first: bool) -> None:
    helper = QuantModuleReplacementHelper()
    helper.prepare_state()
    helper.apply_quant_modules()
    initialize()
    for restore in [helper.restore_float_modules, deactivate][:: 1 if helper_first else -1]:
        restore()
    assert_torch_is_true()


def test_models_built_meanwhile_compute_what_torch_computes() -> None:
    torch.manual_seed(0)
    original = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.AvgPool2d(2), nn.Conv2d(4, 2, 2))
    with initialize():
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.AvgPool2d(2), nn.Conv2d(4, 2, 2)
        )
    model.load_state_dict(original.state_dict())
    x = torch.randn(2, 3, 8, 8)

    # Eight bits: half a step of each of three quantized tensors and weights, a few times over.
    torch.testing.assert_close(model(x), original(x), atol=0.05, rtol=0)
    for quantizer in model.modules():
        if isinstance(quantizer, quant_nn.TensorQuantizer):
            quantizer.disable()
    torch.testing.assert_close(model(x), original(x))


def test_the_pipeline_knows_float_modules_while_torch_is_patched() -> None:
    torch.manual_seed(0)
    layers = [
        nn.ConvTranspose2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    model = nn.Sequential(*layers, Functional()).eval()
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    x = torch.randn(2, 3, 8, 8)

    texts = []
    for is_patched in (True, False):
        with initialize() if is_patched else nullcontext():
            prepared = fxq.prepare(model, x, recipe="onnxruntime")
        fxq.calibrate(prepared, [x], progress=False)
        texts.append(str(prepared.graph))
        # Eight bits.
        torch.testing.assert_close(prepared(x), model(x), atol=0.02, rtol=0)
    assert texts[0] == texts[1]
    assert "1" not in {str(node.target) for node in prepared.graph.nodes}  # the batch norm is folded
