"""enable_onnx_export: torch.onnx.export writes quantizers of fxq.compat as QuantizeLinear and DequantizeLinear."""

from collections.abc import Iterator
from contextlib import contextmanager

from fxq.compat.pytorch_quantization.export_patch import held_export
from fxq.compat.pytorch_quantization.nn.modules.tensor_quantizer import TensorQuantizer


@contextmanager
def enable_onnx_export() -> Iterator[None]:
    """Take calls of ``torch.onnx.export`` as they were written for the original, and check that ranges are stored.

    See :mod:`fxq.compat.pytorch_quantization.export_patch`. Afterwards, also after an exception, torch is as before.
    """
    before = TensorQuantizer._enable_onnx_export
    TensorQuantizer._enable_onnx_export = True
    try:
        with held_export("enable_onnx_export"):
            yield
    finally:
        TensorQuantizer._enable_onnx_export = before
