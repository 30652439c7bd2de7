"""A script written for pytorch-quantization runs with its imports changed; then the same model in one call.

The functions are those of the ResNet-50 tutorial. Instead of 1024 photographs, a shallow ResNet with random weights
sees two small batches of made-up images. Run it: uv run python examples/from_pytorch_quantization.py
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

import fxq
from fxq.compat.pytorch_quantization import calib, enable_onnx_export, quant_modules
from fxq.compat.pytorch_quantization import nn as quant_nn
from fxq.compat.pytorch_quantization.tensor_quant import QuantDescriptor

# Or leave the script as it is, with this in front of its first import of pytorch_quantization:
#     from fxq.compat import install_alias
#     install_alias()


def shallow_resnet() -> nn.Module:
    return models.ResNet(BasicBlock, [1, 1, 1, 1]).eval()  # half of resnet18


def collect_stats(model: nn.Module, data_loader: list[Tensor]) -> None:
    for module in model.modules():
        if isinstance(module, quant_nn.TensorQuantizer):
            if module._calibrator is not None:
                module.disable_quant()
                module.enable_calib()
            else:
                module.disable()
    for image in data_loader:
        model(image)
    for module in model.modules():
        if isinstance(module, quant_nn.TensorQuantizer):
            if module._calibrator is not None:
                module.enable_quant()
                module.disable_calib()
            else:
                module.enable()


def compute_amax(model: nn.Module, **kwargs: object) -> None:
    for module in model.modules():
        if isinstance(module, quant_nn.TensorQuantizer) and module._calibrator is not None:
            if isinstance(module._calibrator, calib.MaxCalibrator):
                module.load_calib_amax()
            else:
                module.load_calib_amax(**kwargs)


def as_the_tutorial(weights: dict[str, Tensor], batches: list[Tensor]) -> nn.Module:
    quant_desc_input = QuantDescriptor(calib_method="histogram")
    quant_nn.QuantConv2d.set_default_quant_desc_input(quant_desc_input)
    quant_nn.QuantLinear.set_default_quant_desc_input(quant_desc_input)
    with quant_modules.initialize():  # deactivate() comes at the end, also when building fails
        model = shallow_resnet()
    model.load_state_dict(weights)
    with torch.no_grad():
        collect_stats(model, batches)
        compute_amax(model, method="percentile", percentile=99.99)
    return model


def report(title: str, path: Path, x: Tensor, expected: Tensor) -> None:
    found = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})[0]
    snr_db = 10 * np.log10(np.square(expected.numpy()).sum() / np.square(expected.numpy() - found).sum())
    activations = sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)
    print(f"{title:44} {path.stat().st_size / 1e6:5.1f} MB {activations:4} QuantizeLinear {snr_db:6.1f} dB")


def main() -> None:
    torch.manual_seed(0)
    batches = list(torch.randn(2, 4, 3, 64, 64))
    x = batches[0][:1]
    trained = shallow_resnet()  # stands for yours
    with torch.no_grad():
        expected = trained(x)

    with tempfile.TemporaryDirectory() as folder:
        # 1. Nothing but the imports changed: torch.onnx.export writes QuantizeLinear and DequantizeLinear.
        model = as_the_tutorial(trained.state_dict(), batches)
        first = Path(folder) / "as_before.onnx"
        with enable_onnx_export():
            torch.onnx.export(model, (x,), first, input_names=["x"], external_data=False, verbose=False)
        report("1. the script, through torch.onnx.export", first, x, expected)

        # 2. The same model through fxq's exporter: weights stored as integers, the file checked.
        prepared = fxq.prepare(model, x, recipe="tensorrt")  # keeps your quantizers, adds those of the residual adds
        fxq.calibrate(prepared, batches)  # fits all of them anew, each as its calibrator does
        second = Path(folder) / "prepared.onnx"
        fxq.export_onnx(fxq.convert(prepared), second)
        report("2. the script, then prepare and export_onnx", second, x, expected)

        # 3. Without the script: no patching, no quantized modules, no loop; batch norm is folded too.
        third = Path(folder) / "quantized.onnx"
        fxq.export_onnx(fxq.quantize(trained, batches, recipe="tensorrt"), third)
        report("3. one call: quantize, and export_onnx", third, x, expected)


if __name__ == "__main__":
    main()
