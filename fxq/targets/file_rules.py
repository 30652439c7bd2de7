"""FileRules: what a runtime demands of the file it runs. Export checks them on the file itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FileRules:
    """What a QDQ file for one runtime must look like. The defaults demand only what ONNX does.

    Args:
        runtime: which of ``fxq.runtimes`` shows what becomes of the file; "" for none that is known here.
        affine_activations: zero points of activations may differ from 0; without it activations are signed too.
        affine_weights: zero points of weights may differ from 0; without it weights are signed too.
        quantized_outputs_allowed: a graph output may come from a quantizer.
        fast_weight_only: write the weight of an operator that computes in float as ONNX Runtime runs it fastest, not
            as DequantizeLinear of the tensor as PyTorch stores it; see stored_weights.py.
        channel_scales_behind: with a float side of 16 bits, write the scales of output channels behind convolutions and
            matrix products; see channel_scales.py.
        whole_gelu: write GELU as one operator, not as its formula: in opset 20 or later, where no other is asked for.
        activation_dtypes: code dtypes of QuantizeLinear, as ONNX writes them in lower case.
        slow_activation_dtypes: those among them around which operations stay in float.
        weight_dtypes: code dtypes of stored tensors.
        integer_bias: a bias may be stored as int32 codes.
        refused_operators: what the runtime does not take, such as "QGemm"; "QLinear*" stands for all that begin so.
        weight_axes: for each operator, the axis of its per-channel weight. A linear weight is counted as PyTorch
            stores it, (out, in): Gemm with transB = 1, or MatMul behind a Transpose; stored as (in, out), the other
            axis is meant.
        minimum_opset: the lowest opset to write, where the runtime wants more than the dtypes do.
        dynamic_batch: write dimension 0 of the inputs as dynamic unless the caller says otherwise.
    """

    runtime: str = ""
    affine_activations: bool = True
    affine_weights: bool = True
    quantized_outputs_allowed: bool = True
    fast_weight_only: bool = False
    channel_scales_behind: bool = False
    whole_gelu: bool = False
    activation_dtypes: tuple[str, ...] = ("int8", "uint8", "int16", "uint16", "float8e4m3fn")
    slow_activation_dtypes: tuple[str, ...] = ()
    weight_dtypes: tuple[str, ...] = ("int4", "int8", "uint8", "int16", "uint16", "float8e4m3fn")
    integer_bias: bool = True
    refused_operators: tuple[str, ...] = ()
    weight_axes: tuple[tuple[str, int], ...] = (("Conv", 0), ("ConvTranspose", 1), ("Gemm", 0), ("MatMul", 0))
    minimum_opset: int = 18
    dynamic_batch: bool = True
