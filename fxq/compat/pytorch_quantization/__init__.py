"""The names of pytorch-quantization 2.2.1, thin over fxq: ``from fxq.compat import pytorch_quantization``.

Modules, descriptors, calibrators and state dicts are as in the original, the numbers too; quantizers and quantized
modules are subclasses of fxq's, so that all of fxq takes them. Nothing needs CUDA.
"""

from fxq.compat.pytorch_quantization import calib, nn, quant_modules, tensor_quant, utils
from fxq.compat.pytorch_quantization.onnx_export import enable_onnx_export
from fxq.compat.pytorch_quantization.quant_modules import deactivate, initialize
from fxq.compat.pytorch_quantization.version import __version__

__all__ = [
    "__version__",
    "calib",
    "deactivate",
    "enable_onnx_export",
    "initialize",
    "nn",
    "quant_modules",
    "tensor_quant",
    "utils",
]
