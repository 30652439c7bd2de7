"""The blocks of pytorch-quantization's user guide, verbatim, through the alias.

Source: docs/source/userguide.rst of pytorch-quantization 2.2 (Apache-2.0), and its Chinese edition for the first
export block.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torchvision.models.resnet import BasicBlock, ResNet

from fxq.runtimes import get_runtime

pytestmark = pytest.mark.usefixtures("alias", "no_gpu")

FUNCTIONS = """
from pytorch_quantization import tensor_quant

# Generate random input. With fixed seed 12345, x should be
# tensor([0.9817, 0.8796, 0.9921, 0.4611, 0.0832, 0.1784, 0.3674, 0.5676, 0.3376, 0.2119])
torch.manual_seed(12345)
x = torch.rand(10)

# fake quantize tensor x. fake_quant_x will be
# tensor([0.9843, 0.8828, 0.9921, 0.4609, 0.0859, 0.1797, 0.3672, 0.5703, 0.3359, 0.2109])
fake_quant_x = tensor_quant.fake_tensor_quant(x, x.abs().max())

# quantize tensor x. quant_x will be
# tensor([126., 113., 127.,  59.,  11.,  23.,  47.,  73.,  43.,  27.])
# with scale=128.0057
quant_x, scale = tensor_quant.tensor_quant(x, x.abs().max())
"""
QUANTIZER = """
from pytorch_quantization.tensor_quant import QuantDescriptor
from pytorch_quantization.nn.modules.tensor_quantizer import TensorQuantizer

quant_desc = QuantDescriptor(num_bits=4, fake_quant=False, axis=(0), unsigned=True)
quantizer = TensorQuantizer(quant_desc)

torch.manual_seed(12345)
x = torch.rand(10, 9, 8, 7)

quant_x = quantizer(x)
"""
MODULES = """
from torch import nn

from pytorch_quantization import tensor_quant
import pytorch_quantization.nn as quant_nn

# pytorch's module
fc1 = nn.Linear(in_features, out_features, bias=True)
conv1 = nn.Conv2d(in_channels, out_channels, kernel_size)

# quantized version
quant_fc1 = quant_nn.Linear(
    in_features, out_features, bias=True,
    quant_desc_input=tensor_quant.QUANT_DESC_8BIT_PER_TENSOR,
    quant_desc_weight=tensor_quant.QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW)
quant_conv1 = quant_nn.Conv2d(
    in_channels, out_channels, kernel_size,
    quant_desc_input=tensor_quant.QUANT_DESC_8BIT_PER_TENSOR,
    quant_desc_weight=tensor_quant.QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL)
"""
FIRST_EXPORT = """
import torch
import torchvision
from pytorch_quantization import tensor_quant, quant_modules
from pytorch_quantization import nn as quant_nn

quant_modules.initialize()

model = torchvision.models.resnet18()
model.cuda()

inputs = torch.randn(1, 3, 224, 224, device='cuda')
quant_nn.TensorQuantizer.use_fb_fake_quant = True
torch.onnx.export(model, inputs, 'quant_resnet18.onnx', opset_version=13)
"""
CALIBRATION = """
# Find the TensorQuantizer and enable calibration
for name, module in model.named_modules():
    if name.endswith('_quantizer'):
        module.enable_calib()
        module.disable_quant()  # Use full precision data to calibrate

# Feeding data samples
model(x)
# ...

# Finalize calibration
for name, module in model.named_modules():
    if name.endswith('_quantizer'):
        module.load_calib_amax()
        module.disable_calib()
        module.enable_quant()

# If running on GPU, it needs to call .cuda() again because new tensors will be created by calibration process
model.cuda()

# Keep running the quantized model
# ...
"""
EXPORT = """
import pytorch_quantization
from pytorch_quantization import nn as quant_nn
from pytorch_quantization import quant_modules

quant_modules.initialize()
model = torchvision.models.resnet50()

# load the calibrated model
state_dict = torch.load("quant_resnet50-entropy-1024.pth", map_location="cpu", weights_only=True)
model.load_state_dict(state_dict)
model.cuda()

dummy_input = torch.randn(128, 3, 224, 224, device='cuda')

input_names = [ "actual_input_1" ]
output_names = [ "output1" ]

with pytorch_quantization.enable_onnx_export():
     # enable_onnx_checker needs to be disabled. See notes below.
     torch.onnx.export(
         model, dummy_input, "quant_resnet50.onnx", verbose=True, opset_version=10, enable_onnx_checker=False
         )
"""


def run(block: str, **names: Any) -> dict[str, Any]:
    scope: dict[str, Any] = {"torch": torch, "torchvision": torchvision, **names}
    exec(block, scope)
    return scope


def tiny_resnet() -> ResNet:
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)


def assert_onnx_computes(path: Path, model: torch.nn.Module, inputs: torch.Tensor) -> None:
    outputs = get_runtime("onnxruntime").run(path, inputs)[0]
    with torch.no_grad():
        expected = model.eval()(inputs).numpy()
    # A value between two codes may round otherwise in the runtime, and move the codes behind it.
    np.testing.assert_allclose(outputs, expected, atol=0.05 * np.abs(expected).max())


def test_quantization_functions_give_the_numbers_of_the_guide() -> None:
    scope = run(FUNCTIONS)

    assert scope["quant_x"].tolist() == [126, 113, 127, 59, 11, 23, 47, 73, 43, 27]
    assert scope["scale"].item() == pytest.approx(128.0057, abs=1e-4)
    expected = [0.9843, 0.8828, 0.9921, 0.4609, 0.0859, 0.1797, 0.3672, 0.5703, 0.3359, 0.2109]
    assert scope["fake_quant_x"].tolist() == pytest.approx(expected, abs=5e-5)


def test_signatures_of_the_guide_take_an_output_dtype() -> None:
    scope = run(FUNCTIONS)
    call = "codes, _ = tensor_quant(inputs, amax, num_bits=8, output_dtype=torch.int32, unsigned=False)"
    functions = scope["tensor_quant"]

    codes = run(call, tensor_quant=functions.tensor_quant, inputs=scope["x"], amax=scope["x"].max())["codes"]

    assert codes.dtype == torch.int32
    assert codes.tolist() == scope["quant_x"].tolist()


def test_quantizer_of_the_guide_returns_four_bit_codes_per_channel() -> None:
    codes = run(QUANTIZER)["quant_x"]

    assert codes[9, 8, 7].tolist()[:3] == [14, 10, 11]  # printed in the Chinese edition
    assert codes.amax((1, 2, 3)).tolist() == [15] * 10


def test_modules_of_the_guide_are_modules_of_torch() -> None:
    scope = run(MODULES, in_features=4, out_features=3, in_channels=2, out_channels=5, kernel_size=3)

    assert isinstance(scope["quant_fc1"], torch.nn.Linear)
    assert isinstance(scope["quant_conv1"], torch.nn.Conv2d)
    assert scope["quant_conv1"](torch.randn(1, 2, 5, 5)).shape == (1, 5, 3, 3)


def test_first_export_writes_the_ranges_of_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.models, "resnet18", tiny_resnet)
    torch.manual_seed(0)

    with pytest.warns(UserWarning, match="have not been calibrated|opset 13 is too low") as warned:
        scope = run(FIRST_EXPORT)

    assert len(warned) == 2
    kinds = [node.op_type for node in onnx.load("quant_resnet18.onnx").graph.node]
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") > 10
    assert_onnx_computes(tmp_path / "quant_resnet18.onnx", scope["model"], scope["inputs"])
    assert scope["model"].conv1.input_quantizer.amax is None  # dynamic as before


def test_calibrated_model_is_saved_loaded_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.models, "resnet50", tiny_resnet)
    torch.manual_seed(0)
    from pytorch_quantization import quant_modules

    with quant_modules.initialize():
        calibrated = tiny_resnet()
    run(CALIBRATION, model=calibrated.eval(), x=torch.randn(4, 3, 64, 64))
    torch.save(calibrated.state_dict(), "quant_resnet50-entropy-1024.pth")
    before = torch.onnx.export

    with pytest.warns(UserWarning, match="no longer takes enable_onnx_checker|opset 10 is too low") as warned:
        scope = run(re.sub("128, 3, 224, 224", "2, 3, 64, 64", EXPORT))

    assert len(warned) == 2
    assert torch.onnx.export is before
    assert_onnx_computes(tmp_path / "quant_resnet50.onnx", scope["model"], scope["dummy_input"])
