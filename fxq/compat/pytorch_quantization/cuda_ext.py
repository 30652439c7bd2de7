"""What the compiled extension of pytorch-quantization computed; here on any device, by the functions of fxq."""

from torch import Tensor

from fxq.quant.affine import fake_tensor_quant
from fxq.quant.float8 import fake_e4m3_quant

__all__ = ["fake_e4m3fy", "fake_tensor_quant", "fake_tensor_quant_", "fake_tensor_quant_with_axis"]


def fake_tensor_quant_(
    inputs: Tensor, amax: Tensor, num_bits: int = 8, unsigned: bool = False, narrow_range: bool = True
) -> Tensor:
    """Quantize and dequantize ``inputs`` in place."""
    return inputs.copy_(fake_tensor_quant(inputs, amax, num_bits, unsigned, narrow_range))


def fake_tensor_quant_with_axis(
    inputs: Tensor, amax: Tensor, axis: int, num_bits: int = 8, unsigned: bool = False, narrow_range: bool = True
) -> Tensor:
    """Return ``inputs`` quantized and dequantized; ``amax`` holds one value for each index of dimension ``axis``."""
    shape = [1] * inputs.dim()
    shape[axis] = -1
    return fake_tensor_quant(inputs, amax.reshape(shape), num_bits, unsigned, narrow_range)


def fake_e4m3fy(inputs: Tensor) -> Tensor:
    """Return ``inputs`` rounded to float8 e4m3, without scaling."""
    return fake_e4m3_quant(inputs)
